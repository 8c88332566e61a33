"""Which rows of a dataset are looked at: all of them, or as many from everywhere as take next to no time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

MAX_GROUPS = 3
MAX_ROWS_OF_GROUP = 1_500
"""Of a sample: row groups of each split, and rows of each, evenly spaced."""


def read_groups(paths: Sequence[Path], columns: Sequence[str], *, is_sample: bool) -> Iterator[pyarrow.Table]:
    """Some columns of Parquet files, a row group at a time, so that memory does not grow with them."""
    chosen = [paths[index] for index in spaced(len(paths), MAX_GROUPS)] if is_sample else paths
    for path in chosen:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            count = file.num_row_groups
            groups = spaced(count, max(1, MAX_GROUPS // len(chosen))) if is_sample else range(count)
            for group in groups:
                table = file.read_row_group(group, columns=list(columns))
                yield table.take(spaced(len(table), MAX_ROWS_OF_GROUP)) if is_sample else table


def spaced(count: int, most: int) -> list[int]:
    """`most` of the numbers below `count`, evenly spaced; all of them where there are no more."""
    if count <= most:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, most).round()]
