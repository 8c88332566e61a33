"""The pairs under review, read by row number, a block at a time, so that a million of them take no more memory than a few."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from nexa_core.errors import UserError

Row = dict[str, Any]

ROWS_A_BLOCK = 64
BLOCKS_KEPT = 8
ROWS_A_BATCH = 2048
SEARCHED = ("row_id", "prompt", "completion")


class PairFile:
    """A Parquet file of pairs, of which only `columns` (those that it has) are ever read.

    Raises:
        UserError: it is no Parquet file, or lacks one of the columns `required`.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], *, required: tuple[str, ...]):
        self.path = path
        self._file = _open(path)
        there = self._file.schema_arrow.names
        if missing := [name for name in required if name not in there]:
            raise UserError(f"{path} has no column {' and no '.join(missing)}. It has {', '.join(there)}.")
        self._columns = [name for name in columns if name in there]
        metadata = self._file.metadata
        groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64)
        self.num_rows: int = metadata.num_rows
        self._blocks: OrderedDict[tuple[int, int], list[Row]] = OrderedDict()

    def read(self, begin: int, end: int) -> list[Row]:
        """The rows `begin` to `end`, exclusive."""
        return [self._row(number) for number in range(begin, end)]

    def batches(self, *columns: str) -> Iterator[pyarrow.RecordBatch]:
        """All rows of some columns, in order, in batches; those that the file lacks are left out."""
        names = [name for name in columns if name in self._file.schema_arrow.names]
        yield from _open(self.path).iter_batches(ROWS_A_BATCH, columns=names)

    def search(self, text: str, *, go_on: Callable[[], bool]) -> np.ndarray | None:
        """Whether each row has `text`, in any case, in its prompt, completion or id; None where `go_on` said no."""
        found = np.zeros(self.num_rows, dtype=bool)
        begin = 0
        for batch in self.batches(*SEARCHED):
            if not go_on():
                return None
            for column in batch.columns:
                hits = compute.match_substring(column.cast(pyarrow.string()), text, ignore_case=True)
                found[begin : begin + len(batch)] |= hits.fill_null(False).to_numpy(zero_copy_only=False)
            begin += len(batch)
        return found

    def _row(self, number: int) -> Row:
        group = int(np.searchsorted(self._ends, number, side="right"))
        within = number - (int(self._ends[group - 1]) if group else 0)
        key = (group, within // ROWS_A_BLOCK)
        if key not in self._blocks:
            self._blocks[key] = self._read_block(*key)
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key][within % ROWS_A_BLOCK]

    def _read_block(self, group: int, block: int) -> list[Row]:
        """A row group can't be entered in its middle: what stands before the block is read and let go."""
        batches = self._file.iter_batches(ROWS_A_BLOCK, row_groups=[group], columns=self._columns)
        return next(batch.to_pylist() for number, batch in enumerate(batches) if number == block)


def _open(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
