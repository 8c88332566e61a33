"""Parquet files written row by row, in groups of bounded size, the same bytes for the same rows."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from nexa_core import durable
from nexa_data.arrow import leave_pandas_out

leave_pandas_out()

GROUP_ROWS = 10_000
GROUP_BYTES = 32 * 2**20
"""A row group ends at either; both depend on the rows alone, so no machine cuts elsewhere."""


class Table:
    """One Parquet file in the making."""

    def __init__(self, file: BinaryIO, schema: pyarrow.Schema):
        # Nearly every value of the others is its own, so that a dictionary of them would be thrown away again.
        repeated = [name for name in ("label",) if name in schema.names]
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated)
        self._parts: list[pyarrow.Table] = []
        self._group_rows = self._group_bytes = 0
        self.num_rows = 0

    def add(self, rows: pyarrow.Table, sizes: np.ndarray) -> None:
        """Add rows, whose sizes in bytes say where a row group ends."""
        self.num_rows += len(rows)
        ends = self._group_bytes + np.cumsum(sizes)
        begin = 0
        while begin < len(rows):
            passed = ends[begin - 1] if begin else self._group_bytes
            limit = GROUP_BYTES + passed - self._group_bytes
            full = int(np.searchsorted(ends, limit)) + 1  # the row that reaches it is in
            end = min(len(rows), full, begin + GROUP_ROWS - self._group_rows)
            self._parts.append(rows.slice(begin, end - begin))
            self._group_rows += end - begin
            self._group_bytes += int(ends[end - 1] - passed)
            if self._group_rows >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
                self._write_group()
            begin = end

    def close(self) -> None:
        if self._parts:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Let go of the file; after `close` this does nothing."""
        self._writer.close()

    def _write_group(self) -> None:
        group = pyarrow.concat_tables(self._parts).combine_chunks()  # however the rows came, the same bytes
        self._writer.write_table(group, row_group_size=GROUP_ROWS)
        self._parts, self._group_rows, self._group_bytes = [], 0, 0


class Tables:
    """The files of one dataset by split; they get their names together, when `stack` is closed without an error."""

    def __init__(self, stack: ExitStack, schema: pyarrow.Schema, path_of: Callable[[str], Path]):
        self._stack, self._schema, self._path_of = stack, schema, path_of
        self._tables: dict[str, Table] = {}
        self._shards: dict[str, int] = {}
        """Rows of each shard that is full."""
        self._shard: Table | None = None
        self._shard_file = ExitStack()

    def open(self, split: str) -> Table:
        """The split's table, a new one where it has none; its file stays open to the end."""
        if split not in self._tables:
            self._tables[split] = self._new_table(self._stack, self._path_of(split))
        return self._tables[split]

    def shard(self, rows_per_shard: int) -> Table:
        """The shard that the next row goes to: 001, 002, ..., one after the other, and no file of the others is open."""
        if self._shard is not None and self._shard.num_rows == rows_per_shard:
            self._close_shard(self._shard)
        if self._shard is None:
            waiting = self._stack.enter_context(_waiting(self._path_of(self._next_shard)))
            self._shard_file = self._stack.enter_context(ExitStack())
            self._shard = self._new_table(self._shard_file, waiting)
        return self._shard

    def close(self) -> None:
        """Write what is buffered; the files are complete, and still without their names."""
        if self._shard is not None:
            self._close_shard(self._shard)
        for table in self._tables.values():
            table.close()

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split of a closed dataset; the shards, in order, come first."""
        return {**self._shards, **{split: table.num_rows for split, table in self._tables.items()}}

    @property
    def _next_shard(self) -> str:
        return f"{len(self._shards) + 1:03d}"

    def _new_table(self, stack: ExitStack, path: Path) -> Table:
        table = Table(stack.enter_context(durable.create(path)), self._schema)
        stack.callback(table.abandon)  # before the file is closed, whatever ends the block
        return table

    def _close_shard(self, shard: Table) -> None:
        shard.close()
        self._shard_file.close()
        self._shards[self._next_shard] = shard.num_rows
        self._shard = None


@contextmanager
def _waiting(path: Path) -> Iterator[Path]:
    """Where a whole file waits, closed, for its name: it gets it when the block ends well, and is gone after it."""
    waiting = path.with_name(f".{path.name}.{os.getpid()}.whole{durable.TEMPORARY_SUFFIX}")
    try:
        yield waiting
        durable.move(waiting, path)
    finally:
        durable.remove(waiting)
