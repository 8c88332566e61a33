"""What the quality steps measured of every row, kept or not, so that other limits can be tried without reading it again."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow

from nexa_core import durable
from nexa_core.config.data import DatasetConfig
from nexa_data.batches import Batch, score_name
from nexa_data.quality import open_step
from nexa_data.tables import Table

ABOUT = (
    pyarrow.field("row_id", pyarrow.string(), nullable=False),
    pyarrow.field("file", pyarrow.string(), nullable=False),
    pyarrow.field("line", pyarrow.int64()),
    pyarrow.field("removed_by", pyarrow.string()),  # a step; null of rows that all of them keep
)


class ScoreTable:
    """The Parquet file of a dataset's scores; it gets its name when `stack` is closed without an error."""

    def __init__(self, stack: ExitStack, path: Path, config: DatasetConfig):
        self._names = [
            score_name(index, name) for index, each in enumerate(config.quality) for name in open_step(each).names
        ]
        fields = [pyarrow.field(name, pyarrow.float64(), nullable=False) for name in self._names]
        self._schema = pyarrow.schema([*ABOUT, *fields])
        self._table = Table(stack.enter_context(durable.create(path)), self._schema)
        stack.callback(self._table.abandon)

    def add(self, batch: Batch, file: str, lines: np.ndarray, removed_by: np.ndarray) -> None:
        columns = [
            batch.table["row_id"].combine_chunks(),
            pyarrow.array([file] * len(lines), pyarrow.string()),
            pyarrow.array(lines, pyarrow.int64()),
            pyarrow.array([step or None for step in removed_by], pyarrow.string()),
            *(pyarrow.array(batch.scores[name], pyarrow.float64()) for name in self._names),
        ]
        rows = pyarrow.Table.from_arrays(columns, schema=self._schema)
        self._table.add(rows, np.full(len(rows), len(self._names) * 8))

    def close(self) -> int:
        """Write what is buffered; returns the number of rows."""
        self._table.close()
        return self._table.num_rows
