"""Training sequences of token ids in Parquet shards, read at random through memory maps.

The ids of a row group lie in its file as they are in memory: one page, uncompressed, plain. So a sequence is a slice of the
mapped file, and any reader of Parquet can read it all the same.
"""

import functools
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from nexa_core import durable
from nexa_data.encoder import ID_DTYPE

TOKENS_LEAF = "tokens.list.element"
MOST_MAPPED = 64
"""Files that are mapped at once: each holds one of the process's open files."""


def _list(of: pyarrow.DataType) -> pyarrow.DataType:
    return pyarrow.list_(pyarrow.field("element", of, nullable=False))


SCHEMA = pyarrow.schema(
    [
        pyarrow.field("tokens", _list(pyarrow.int32()), nullable=False),
        pyarrow.field("row_ids", _list(pyarrow.string()), nullable=False),
        pyarrow.field("starts", _list(pyarrow.int32()), nullable=False),
        pyarrow.field("offsets", _list(pyarrow.int64()), nullable=False),
        pyarrow.field("num_targets", pyarrow.int32(), nullable=False),
        pyarrow.field("num_begun", pyarrow.int32(), nullable=False),
    ]
)
"""A row is a sequence. Of each document in it: its `row_ids`, the place in `tokens` where it `starts`, and how many of its
tokens lie in sequences before (`offsets`, 0 where it begins). `num_targets` tokens are followed by one of the same document, in
this sequence or as the first of the next; `num_begun` documents begin."""


@dataclass(frozen=True)
class Shard:
    """A file of sequences."""

    path: Path
    offsets: tuple[tuple[int, int], ...]
    """Of each row group the byte at which its ids begin, and its sequences."""
    num_tokens: int

    @classmethod
    def of(cls, path: Path, record: Mapping[str, Any]) -> "Shard":
        """As a manifest records it."""
        return cls(path, tuple((each["byte"], each["rows"]) for each in record["offsets"]), int(record["tokens"]))


class TokenSequences:
    """All sequences of some shards by number; nothing of their ids is held in memory."""

    def __init__(self, shards: list[Shard], *, width: int):
        self.width = width
        """Tokens of each sequence but the last of a shard, which may be shorter."""
        self._files = [shard.path for shard in shards]
        groups = [(file, at, rows) for file, shard in enumerate(shards) for at, rows in shard.offsets]
        self._file_of, self._at, rows_of = np.array(groups, dtype=np.int64).reshape(-1, 3).T
        self._ends = np.cumsum(rows_of)
        """Of each row group the number of sequences up to its end."""
        lasts = (np.cumsum([sum(rows for _, rows in shard.offsets) for shard in shards]) - 1).tolist()
        self._lasts = frozenset(lasts)
        """The last sequence of each shard."""
        self.token_counts_N = np.full(len(self), width, dtype=np.int64)
        for shard, last in zip(shards, lasts, strict=True):
            self.token_counts_N[last] = (shard.num_tokens - 1) % width + 1
        self._mapped = functools.lru_cache(maxsize=MOST_MAPPED)(_map)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, row: int, *, following: bool = False) -> np.ndarray:
        """The ids of a sequence, a view into the mapped file.

        Args:
            following: with the first of the next sequence in the shard, where there is one, behind them.
        """
        count = int(self.token_counts_N[row])
        group = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        file = self._mapped(self._files[self._file_of[group]])
        begin = int(self._at[group]) + (row - first) * self.width * ID_DTYPE.itemsize
        if not following or row in self._lasts:
            return np.frombuffer(file, ID_DTYPE, count, begin)
        if row + 1 < self._ends[group]:
            return np.frombuffer(file, ID_DTYPE, count + 1, begin)
        return np.concatenate([np.frombuffer(file, ID_DTYPE, count, begin), self.read(row + 1)[:1]])

    def blocks(self) -> Iterator[np.ndarray]:
        """All ids in order, many at once."""
        for group, end in enumerate(self._ends.tolist()):
            first = int(self._ends[group - 1]) if group else 0
            file, count = self._mapped(self._files[self._file_of[group]]), int(self.token_counts_N[first:end].sum())
            yield np.frombuffer(file, ID_DTYPE, count, int(self._at[group]))

    def read_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """`num_targets` and `num_begun` of every sequence."""
        names = ["num_targets", "num_begun"]
        tables = [parquet.read_table(path, columns=names, schema=SCHEMA) for path in self._files]
        table = pyarrow.concat_tables(tables) if tables else SCHEMA.empty_table()
        targets, begun = (table[name].to_numpy().astype(np.int64) for name in names)
        return targets, begun


def begins_in(starts: pyarrow.ChunkedArray, offsets: pyarrow.ChunkedArray, width: int) -> np.ndarray:
    """Where documents begin in the tokens of some sequences, from these columns of theirs."""
    starts, offsets = starts.combine_chunks(), offsets.combine_chunks()
    places: np.ndarray = starts.value_parent_indices().to_numpy() * width + starts.flatten().to_numpy()
    return places[offsets.flatten().to_numpy() == 0]


def count_targets(table: pyarrow.Table, width: int) -> np.ndarray:
    """How often each token is to be predicted in some sequences: all are, but for the first of each document."""
    tokens = table["tokens"].combine_chunks().flatten().to_numpy()
    counts = np.bincount(tokens)
    return counts - np.bincount(tokens[begins_in(table["starts"], table["offsets"], width)], minlength=len(counts))


def count_targets_of(path: Path, width: int) -> np.ndarray:
    """`count_targets` of a whole shard."""
    counts_V = np.zeros(0, dtype=np.int64)
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["tokens", "starts", "offsets"])
            counts_V = added(counts_V, count_targets(table, width))
    return counts_V


def added(counts: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The sum of two counts by token, of which one may know more tokens."""
    total = np.zeros(max(len(counts), len(more)), dtype=np.int64)
    total[: len(counts)] += counts
    total[: len(more)] += more
    return total


def write_target_counts(path: Path, counts_V: np.ndarray) -> None:
    """Write how often each token is to be predicted, those that are."""
    tokens = np.flatnonzero(counts_V)
    table = pyarrow.table({"token": tokens.astype(np.int32), "targets": counts_V[tokens].astype(np.int64)})
    with durable.create(path) as file:
        parquet.write_table(table, file, compression="zstd")


def read_target_counts(path: Path) -> np.ndarray:
    """How often each token is to be predicted, up to the last that is."""
    table = parquet.read_table(path, columns=["token", "targets"])
    counts_V = np.zeros(int(compute.max(table["token"]).as_py() or 0) + 1, dtype=np.int64)
    counts_V[table["token"].to_numpy()] = table["targets"].to_numpy()
    return counts_V


def find_tokens(path: Path) -> tuple[tuple[int, int], ...]:
    """Where the ids of each row group begin in a file, in bytes, and its sequences."""
    metadata = parquet.read_metadata(path)
    leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    found = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        column = group.column(leaves.index(TOKENS_LEAF))
        begin = column.data_page_offset + column.total_compressed_size - column.num_values * ID_DTYPE.itemsize
        found.append((begin, group.num_rows))
    return tuple(found)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
