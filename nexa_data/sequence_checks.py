"""Whether a dataset's token sequences are its documents, encoded by its tokenizer, and lie where the manifest says."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from nexa_data.datasets import Dataset
from nexa_data.encoder import ID_DTYPE, load_tokenizer
from nexa_data.sequences import SCHEMA, TokenSequences, find_tokens

NUM_ENCODED = 100
"""Documents of each shard that are encoded again, by the tokenizer itself and not by what is quick."""


def sequence_problems(dataset: Dataset) -> list[str]:
    """What is wrong with the shards of sequences, whose digests hold."""
    return [f"{shard}: {problem}" for shard in dataset.training_splits for problem in _problems(dataset, shard)]


def _problems(dataset: Dataset, name: str) -> Iterator[str]:
    (shard,) = dataset.sequence_shards([name])
    assert dataset.sequence_tokens is not None
    mapped = TokenSequences([shard], width=dataset.sequence_tokens)
    row_ids: list[pyarrow.ChunkedArray] = []
    with parquet.ParquetFile(shard.path) as file:
        if not file.schema_arrow.equals(SCHEMA):
            yield "other columns than sequences have"
            return
        if find_tokens(shard.path) != shard.offsets:
            yield "ids do not lie at the offsets of the manifest"
            return
        first = 0
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group)
            rows = [mapped.read(row) for row in range(first, first + len(table))]
            first += len(table)
            tokens = table["tokens"].combine_chunks()
            if not np.array_equal(np.concatenate(rows), tokens.flatten().to_numpy()):
                yield f"row group {group} reads otherwise through the memory map"
            is_begin = compute.equal(table["offsets"].combine_chunks().flatten(), 0)
            row_ids.append(table["row_ids"].combine_chunks().flatten().filter(is_begin))
            if group == 0:
                yield from _encoded_otherwise(dataset, name, table)
    documents = parquet.read_table(dataset.split_path(name), columns=["row_id"])["row_id"]
    if pyarrow.chunked_array(row_ids, pyarrow.string()) != documents:
        yield "other documents, or in another order, than the manifest's"


def _encoded_otherwise(dataset: Dataset, name: str, table: pyarrow.Table) -> Iterator[str]:
    """The first documents that the tokenizer encodes otherwise than they are in the first row group."""
    tokenizer_json = dataset.tokenizer_json()
    assert tokenizer_json is not None
    tokenizer, (begin, end) = load_tokenizer(tokenizer_json), dataset.sequence_marks
    tokens = table["tokens"].combine_chunks().flatten().to_numpy()
    starts = [0, *(np.flatnonzero(tokens == end) + 1).tolist()][: NUM_ENCODED + 1]
    with parquet.ParquetFile(dataset.split_path(name)) as file:
        batch = next(file.iter_batches(NUM_ENCODED, columns=["row_id", "completion"]))
    for (first, last), document in zip(pairwise(starts), batch.to_pylist(), strict=False):
        ids = tokenizer.encode(document["completion"], add_special_tokens=False).ids
        expected = np.array([*([] if begin is None else [begin]), *ids, end], ID_DTYPE)
        if not np.array_equal(tokens[first:last], expected):
            yield f"document {document['row_id']} has other ids than the tokenizer gives it"
            return
