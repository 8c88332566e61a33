"""Whether a dataset's token sequences are its documents, encoded by its tokenizer, and lie where the manifest says."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from nexa_data.datasets import Dataset
from nexa_data.encoder import ID_DTYPE, load_tokenizer
from nexa_data.sequences import (
    SCHEMA,
    TokenSequences,
    added,
    begins_in,
    count_targets,
    find_tokens,
    read_target_counts,
)

NUM_ENCODED = 100
"""Documents of each shard that are encoded again, and the last, by the tokenizer itself and not by what is quick."""


def sequence_problems(dataset: Dataset) -> list[str]:
    """What is wrong with the shards of sequences, whose digests hold."""
    counted: list[np.ndarray] = []
    problems = [
        f"{shard}: {problem}"
        for shard in dataset.training_splits
        for problem in dict.fromkeys(_problems(dataset, shard, counted))
    ]
    path = dataset.target_counts()
    if path is not None and not problems:
        differing = added(reduce(added, counted, np.zeros(0, dtype=np.int64)), -read_target_counts(path)).nonzero()[0]
        problems += [f"the token {token} is to be predicted more or less often than is told" for token in differing[:1]]
    return problems


def _problems(dataset: Dataset, name: str, counted: list[np.ndarray]) -> Iterator[str]:
    """What is wrong with a shard; appends how often each token of a part of it is to be predicted."""
    (shard,) = dataset.sequence_shards([name])
    assert dataset.sequence_tokens is not None
    mapped = TokenSequences([shard], width=dataset.sequence_tokens)
    row_ids: list[pyarrow.ChunkedArray] = []
    with parquet.ParquetFile(shard.path, pre_buffer=False) as file:
        if not file.schema_arrow.equals(SCHEMA):
            yield "other columns than sequences have"
            return
        if find_tokens(shard.path) != shard.offsets:
            yield "ids do not lie at the offsets of the manifest"
            return
        first, last_document = 0, np.empty(0, ID_DTYPE)
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group)
            rows = [mapped.read(row) for row in range(first, first + len(table))]
            first += len(table)
            tokens, begins = (
                _flat(table, "tokens").to_numpy(),
                begins_in(table["starts"], table["offsets"], mapped.width),
            )
            if not np.array_equal(np.concatenate(rows), tokens):
                yield f"row group {group} reads otherwise through the memory map"
            ends = np.flatnonzero(tokens == dataset.sequence_marks[1]) + 1
            if not np.array_equal(begins[begins > 0], ends[ends < len(tokens)]):
                yield f"in row group {group} documents end elsewhere than the next begin"
            if not _counts_hold(table, mapped.width, begins, ends):
                yield f"row group {group} has other numbers of targets or documents than it says"
            counted.append(count_targets(table, mapped.width))
            row_ids.append(_flat(table, "row_ids").filter(compute.equal(_flat(table, "offsets"), 0)))
            if group == 0:
                pieces = np.split(tokens, begins[1:])
                yield from _encoded_otherwise(dataset, name, pieces if len(tokens) in ends else pieces[:-1])
            before = [] if len(begins) else [last_document]
            last_document = np.concatenate([*before, tokens[begins[-1] if len(begins) else 0 :]])
    if len(last_document) and last_document[-1] != dataset.sequence_marks[1]:
        yield "the last document does not end"
    elif len(last_document):
        yield from _encoded_otherwise(dataset, name, [last_document], from_end=True)
    documents = parquet.read_table(dataset.split_path(name), columns=["row_id"])["row_id"]
    if pyarrow.chunked_array(row_ids, pyarrow.string()) != documents:
        yield "other documents, or in another order, than the manifest's"


def _counts_hold(table: pyarrow.Table, width: int, begins: np.ndarray, ends: np.ndarray) -> bool:
    begun, ended = (np.bincount(places // width, minlength=len(table)) for places in (begins, ends - 1))
    lengths = compute.list_value_length(table["tokens"]).to_numpy()
    return np.array_equal(table["num_begun"], begun) and np.array_equal(table["num_targets"], lengths - ended)


def _flat(table: pyarrow.Table, name: str) -> pyarrow.Array:
    return table[name].combine_chunks().flatten()


def _encoded_otherwise(
    dataset: Dataset, name: str, encoded: list[np.ndarray], *, from_end: bool = False
) -> Iterator[str]:
    """The first document that the tokenizer encodes otherwise than it is in the shard, if there is one.

    Args:
        encoded: the tokens of the shard's first documents, one after the other.
        from_end: whether they are those of its last document instead.
    """
    tokenizer_json = dataset.tokenizer_json()
    assert tokenizer_json is not None
    tokenizer, (begin, end) = load_tokenizer(tokenizer_json), dataset.sequence_marks
    for tokens, document in zip(encoded, _read_documents(dataset, name, from_end=from_end), strict=False):
        ids = tokenizer.encode(document["completion"], add_special_tokens=False).ids
        expected = np.array([*([] if begin is None else [begin]), *ids, end], ID_DTYPE)
        if not np.array_equal(tokens, expected):
            yield f"document {document['row_id']} has other ids than the tokenizer gives it"
            return


def _read_documents(dataset: Dataset, name: str, *, from_end: bool) -> list[dict[str, Any]]:
    """The first documents of a shard, or its last."""
    columns = ["row_id", "completion"]
    with parquet.ParquetFile(dataset.split_path(name), pre_buffer=False) as file:
        if from_end:
            group = file.read_row_group(file.num_row_groups - 1, columns=columns)
            return list(group.slice(len(group) - 1).to_pylist())
        return list(next(file.iter_batches(NUM_ENCODED, columns=columns)).to_pylist())
