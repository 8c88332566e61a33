"""Parquet files, read in batches."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_data.sources.raw import BadRow, RawRow, Row
from nexa_data.sources.streams import UnreadableError

BATCH_ROWS = 1024
FOOTER_END_BYTES = 8
"""The footer's length and `PAR1`. Source: Apache Parquet, File Format."""


@dataclass(frozen=True)
class RowGroup:
    """Where a row group lies in its file, in rows and in bytes."""

    first_row: int
    num_rows: int
    begin: int
    end: int


def read_parquet(path: Path, file: str) -> Iterator[Row]:
    """A row for each of the file's rows, numbered from 1, with values as plain Python objects.

    Raises:
        UserError: a column name stands twice in the schema.
        UnreadableError: the file is not Parquet.
    """
    return read_row_groups(path, file, 0, row_groups(path))


def row_groups(path: Path) -> list[RowGroup]:
    """The row groups of a file.

    Raises:
        UnreadableError: the file is not Parquet.
    """
    found, first_row = list[RowGroup](), 0
    with _opened(path) as opened:
        for index in range(opened.num_row_groups):
            group = opened.metadata.row_group(index)
            columns = [group.column(number) for number in range(group.num_columns)]
            begins = [each.dictionary_page_offset or each.data_page_offset for each in columns]
            ends = [begin + each.total_compressed_size for begin, each in zip(begins, columns, strict=True)]
            found.append(RowGroup(first_row, group.num_rows, min(begins, default=0), max(ends, default=0)))
            first_row += group.num_rows
    return found


def read_row_groups(path: Path, file: str, first: int, groups: Sequence[RowGroup]) -> Iterator[Row]:
    """The rows of groups that follow each other, numbered from 1; bad ones for the rest of each damaged group.

    Args:
        first: which of the file's groups the first one is.

    Raises:
        UserError: a column name stands twice in the schema.
        UnreadableError: the file is not Parquet.
    """
    with _opened(path) as opened:
        _refuse_double_columns(opened.schema_arrow.names, file)
        before = groups[0].first_row if groups else 0
        for index, group in enumerate(groups, first):
            number = group.first_row
            try:
                for batch in opened.iter_batches(batch_size=BATCH_ROWS, row_groups=[index], use_threads=False):
                    for values in _rows_of(batch):
                        number += 1
                        if isinstance(values, str):
                            yield BadRow(file, number - before, "not UTF-8", detail=values)
                        else:
                            yield RawRow(file, number - before, values)
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                for lost in range(number + 1, group.first_row + group.num_rows + 1):
                    yield BadRow(file, lost - before, "damaged row group", detail=_what(error))


def footer(path: Path) -> bytes:
    """What the end of a file says of its columns and row groups."""
    with path.open("rb") as file:
        file.seek(-FOOTER_END_BYTES, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-FOOTER_END_BYTES - length, os.SEEK_END)
        return file.read(length)


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    try:
        opened = parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableError(f"not readable as Parquet: {_what(error)}") from None
    with opened:
        yield opened


def _what(error: Exception) -> str:
    return str(error).splitlines()[0]


def _rows_of(batch: pyarrow.RecordBatch) -> Sequence[dict[str, Any] | str]:
    """The rows as Python objects, or what is wrong with one; values for which Python has none, such as late dates, as text."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (OverflowError, ValueError):
        return [_row_of(batch, row) for row in range(batch.num_rows)]


def _row_of(batch: pyarrow.RecordBatch, row: int) -> dict[str, Any] | str:
    values = {}
    for name in batch.schema.names:
        try:
            values[name] = _plain(batch[name][row])
        except UnicodeDecodeError as error:
            return f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of column '{name}'"
    return values


def _plain(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError):
        try:
            return value.cast(pyarrow.string()).as_py()
        except pyarrow.ArrowException:
            return str(value)


def _refuse_double_columns(names: list[str], file: str) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise UserError(f"{file}: more than one column is called {', '.join(map(repr, doubles))}; rename them")
