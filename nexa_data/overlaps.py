"""The rows of a dataset that repeat evaluation texts, left out or not, as they are listed beside it."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow

from nexa_core import durable
from nexa_core.config.data import DatasetConfig, TeacherInputsOutput
from nexa_data.batches import Batch
from nexa_data.split import SPLITS, splits_of
from nexa_data.tables import Table

SCHEMA = pyarrow.schema(
    [
        pyarrow.field("row_id", pyarrow.string(), nullable=False),
        pyarrow.field("split", pyarrow.string()),  # null of a row that is not in the dataset
        pyarrow.field("evaluation_ids", pyarrow.list_(pyarrow.string()), nullable=False),  # "<dataset>/<row_id>"
        pyarrow.field("coverage", pyarrow.float64(), nullable=False),  # of the first of them
        pyarrow.field("text", pyarrow.string(), nullable=False),  # the longest piece that both have
    ]
)


class OverlapTable:
    """The Parquet file of a dataset's overlaps; it gets its name when `stack` is closed without an error."""

    def __init__(self, stack: ExitStack, path: Path, config: DatasetConfig):
        self._output = config.output
        self._table = Table(stack.enter_context(durable.create(path)), SCHEMA)
        stack.callback(self._table.abandon)

    def add(self, batch: Batch, is_kept: np.ndarray) -> None:
        if not batch.overlaps:
            return
        rows = [each.row for each in batch.overlaps]
        columns = [
            batch.table["row_id"].combine_chunks().take(pyarrow.array(rows)),
            pyarrow.array(self._splits(batch.positions[rows], is_kept[rows]), pyarrow.string()),
            pyarrow.array([each.evaluation_ids for each in batch.overlaps], pyarrow.list_(pyarrow.string())),
            pyarrow.array([each.coverage for each in batch.overlaps], pyarrow.float64()),
            pyarrow.array([each.text for each in batch.overlaps], pyarrow.string()),
        ]
        table = pyarrow.Table.from_arrays(columns, schema=SCHEMA)
        self._table.add(table, np.array([len(each.text) for each in batch.overlaps]))

    def close(self) -> int:
        """Write what is buffered; returns the number of rows."""
        self._table.close()
        return self._table.num_rows

    def _splits(self, positions: np.ndarray, is_kept: np.ndarray) -> list[str | None]:
        if isinstance(self._output, TeacherInputsOutput):
            return ["teacher_inputs" if kept else None for kept in is_kept]
        numbers = splits_of(positions, self._output)
        return [SPLITS[number] if kept else None for number, kept in zip(numbers, is_kept, strict=True)]
