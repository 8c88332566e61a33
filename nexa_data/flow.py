"""The one pass over a source: each row becomes canonical and goes to its split, or to the rejects."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nexa_core.config.data import DatasetConfig, Output, PretrainOutput, TrainingOutput
from nexa_data.rejects import Rejects
from nexa_data.rows import CanonicalRow, RowError, canonical, check_columns
from nexa_data.sources import Source
from nexa_data.sources.raw import BadRow, RawRow, excerpt
from nexa_data.split import HELD_OUT, SPLITS, split_of
from nexa_data.tables import Table, Tables

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
FLOAT_BYTES = 4


@dataclass
class Census:
    """What was counted on the way; `feature_shape` is None for rows without features."""

    num_read: int = 0
    num_kept: int = 0
    labels: set[str] = field(default_factory=set)
    feature_shape: list[int] | None = None


def fill(tables: Tables, rejects: Rejects, source: Source, config: DatasetConfig) -> Census:
    """Put every row of `source` where it belongs; holds a row group of each table and all ids in memory, no more."""
    convert, table_for = canonical(config.rows), _placement(config.output, tables)
    census, seen, pace = Census(), Counter[str](), Pace(config.key)
    for raw in check_columns(source.rows(), config.rows):
        census.num_read += 1
        pace.tick(census.num_read)
        if isinstance(raw, BadRow):
            rejects.add("read", raw)
            continue
        try:
            row = convert(raw.values)
        except RowError as error:
            rejects.add("normalise", _left_out(raw, error.reason, error.detail))
            continue
        seen[row.row_id] += 1
        if seen[row.row_id] > 1:
            if config.drop_duplicates:
                rejects.add_duplicate(_left_out(raw, "duplicate"), row.row_id)
                continue
            row = row._replace(row_id=f"{row.row_id}-{seen[row.row_id]}")
        if row.label is not None:
            census.labels.add(row.label)
        if config.rows.name == "features" and census.feature_shape is None:
            census.feature_shape = list(config.rows.shape or (len(row.input) // FLOAT_BYTES,))
        table_for(row).add(row)
        census.num_kept += 1
    return census


def _placement(output: Output, tables: Tables) -> Callable[[CanonicalRow], Table]:
    """Which table the next kept row goes to."""
    if isinstance(output, TrainingOutput):
        for split in SPLITS:  # also those that will stay empty: readers find three files always
            tables.open(split)
        return lambda row: tables.open(split_of(row.input, output))
    if isinstance(output, PretrainOutput):
        for split in HELD_OUT:
            tables.open(split)
        return lambda row: _document_table(row, output, tables)
    return lambda row: tables.open("teacher_inputs")


def _document_table(row: CanonicalRow, output: PretrainOutput, tables: Tables) -> Table:
    split = split_of(row.input, output)
    return tables.open(split) if split in HELD_OUT else tables.shard(output.rows_per_shard)


def _left_out(raw: RawRow, reason: str, detail: str = "") -> BadRow:
    return BadRow(raw.file, raw.line, reason, excerpt(raw.values), detail, raw.offset)


class Pace:
    """Logs how far a job of unknown length is, now and then."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic):
        self._what, self._clock = what, clock
        self._began = self._last_line = clock()

    def tick(self, num_rows: int) -> None:
        if num_rows % 1000:  # the clock is not free
            return
        now = self._clock()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = num_rows / (now - self._began)
            logger.info("%s: %s rows read, %s rows/s", self._what, f"{num_rows:,}", f"{rate:,.0f}")
