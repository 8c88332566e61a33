"""Parquet files, read in batches."""

from collections.abc import Iterator
from pathlib import Path

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
        with parquet.ParquetFile(path) as opened:
            _refuse_double_columns(opened.schema_arrow.names, file)
            for batch in opened.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(file, number, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"not readable as Parquet after row {number}: {str(error).splitlines()[0]}") from None


def _refuse_double_columns(names: list[str], file: str) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise UserError(f"{file}: more than one column is called {', '.join(map(repr, doubles))}; rename them")
