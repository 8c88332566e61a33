"""The numbers of a dataset's token sequences: what the manifest counts, and how long the documents are in tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from nexa_data.datasets import Dataset
from nexa_data.overview.sampling import MAX_GROUPS, spaced
from nexa_data.overview.tally import Tally
from nexa_data.sequences import begins_in


@dataclass(frozen=True)
class TokenCounts:
    width: int
    """Tokens of each sequence but the last of a shard."""
    num_tokens: int
    num_sequences: int
    num_documents: int
    num_short: int
    """Sequences of fewer tokens than `width`; a batch is filled up to it."""
    lengths: Tally
    """Tokens of documents, their marks among them; of some shards where not all are measured."""

    @property
    def padding(self) -> float:
        """Share of the places of all sequences that no token fills."""
        return 1 - self.num_tokens / (self.num_sequences * self.width)


def count_tokens(dataset: Dataset, *, is_sample: bool) -> TokenCounts | None:
    """Count a dataset's token sequences, or None where it has none; how long documents are, of some shards for a sample."""
    width = dataset.sequence_tokens
    records = [record for record in dataset.sequence_records.values() if record["tokens"]]
    if width is None or not records:
        return None
    lengths = Tally()
    for place in spaced(len(records), MAX_GROUPS) if is_sample else range(len(records)):
        lengths.add(_document_lengths(dataset.layout.absolute(records[place]["path"]), records[place], width))
    return TokenCounts(
        width,
        num_tokens=sum(record["tokens"] for record in records),
        num_sequences=sum(record["rows"] for record in records),
        num_documents=sum(record["documents"] for record in records),
        num_short=sum(record["tokens"] % width > 0 for record in records),
        lengths=lengths,
    )


def _document_lengths(path: Path, record: Mapping[str, Any], width: int) -> np.ndarray:
    """The tokens of each document of a shard, from where the documents begin; no token is read."""
    begins, first = [], 0
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["starts", "offsets"])
            begins.append(first * width + begins_in(table["starts"], table["offsets"], width))
            first += len(table)
    return np.diff(np.concatenate(begins), append=record["tokens"])
