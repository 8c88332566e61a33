"""Parquet files, read in batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_data.sources.raw import RawRow, Row
from nexa_data.sources.streams import UnreadableError

BATCH_ROWS = 1024


def read_parquet(path: Path, file: str) -> Iterator[Row]:
    """A row for each of the file's rows, numbered from 1, with values as plain Python objects.

    Raises:
        UserError: a column name stands twice in the schema.
        UnreadableError: the file is not Parquet, or is damaged from some row on.
    """
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as opened:
            _refuse_double_columns(opened.schema_arrow.names, file)
            for batch in opened.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for values in _rows_of(batch):
                    number += 1
                    yield RawRow(file, number, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"not readable as Parquet after row {number}: {str(error).splitlines()[0]}") from None


def _rows_of(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python objects; values for which Python has none, such as dates beyond the year 9999, as text."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (OverflowError, ValueError):
        return [{name: _plain(batch[name][row]) for name in batch.schema.names} for row in range(batch.num_rows)]


def _plain(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        try:
            return value.cast(pyarrow.string()).as_py()
        except pyarrow.ArrowException:
            return str(value)


def _refuse_double_columns(names: list[str], file: str) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise UserError(f"{file}: more than one column is called {', '.join(map(repr, doubles))}; rename them")
