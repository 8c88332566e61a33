"""Parquet files written row by row, in groups of bounded size, the same bytes for the same rows."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import pyarrow
import pyarrow.parquet as parquet

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_data.rows import CanonicalRow

GROUP_ROWS = 10_000
GROUP_BYTES = 32 * 2**20
"""A row group ends at either; both depend on the rows alone, so no machine cuts elsewhere."""
MAX_OPEN_FILES = 200
"""Every file stays open until all may be published at once, and a process has a limit."""


class Table:
    """One Parquet file in the making."""

    def __init__(self, file: BinaryIO, schema: pyarrow.Schema):
        self._schema = schema
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")
        self._group: list[CanonicalRow] = []
        self._group_bytes = 0
        self.num_rows = 0

    def add(self, row: CanonicalRow) -> None:
        self._group.append(row)
        self._group_bytes += (
            len(row.input) + len(row.columns.get("completion") or "") + len(row.columns["extra_json"] or "")
        )
        self.num_rows += 1
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        if self._group:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Let go of the file; after `close` this does nothing."""
        self._writer.close()

    def _write_group(self) -> None:
        columns = [
            pyarrow.array(
                [row.row_id if field.name == "row_id" else row.columns[field.name] for row in self._group], field.type
            )
            for field in self._schema
        ]
        self._writer.write_table(pyarrow.Table.from_arrays(columns, schema=self._schema), row_group_size=GROUP_ROWS)
        self._group, self._group_bytes = [], 0


class Tables:
    """The files of one dataset by split; they get their names together, when `stack` is closed without an error."""

    def __init__(self, stack: ExitStack, schema: pyarrow.Schema, path_of: Callable[[str], Path]):
        self._stack, self._schema, self._path_of = stack, schema, path_of
        self._tables: dict[str, Table] = {}

    def open(self, split: str) -> Table:
        """The split's table, a new one where it has none.

        Raises:
            UserError: that would be too many.
        """
        if split not in self._tables:
            if len(self._tables) == MAX_OPEN_FILES:
                raise UserError(f"more than {MAX_OPEN_FILES} shards; set a larger output.rows_per_shard")
            file = self._stack.enter_context(durable.create(self._path_of(split)))
            self._tables[split] = Table(file, self._schema)
            self._stack.callback(self._tables[split].abandon)  # before the file is closed, whatever ends the block
        return self._tables[split]

    def close(self) -> None:
        """Write what is buffered; the files are complete, and still without their names."""
        for table in self._tables.values():
            table.close()

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: table.num_rows for split, table in self._tables.items()}
