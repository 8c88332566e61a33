"""Where every row goes: to its split, or to the rejects, in the order of the source."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow

from nexa_core.config.data import DatasetConfig, PretrainOutput, TeacherInputsOutput
from nexa_data.batches import Bad, Batch
from nexa_data.parts import Part
from nexa_data.rejects import Rejects
from nexa_data.sources.raw import BLANK, BadRow
from nexa_data.split import SPLITS, splits_of
from nexa_data.tables import Tables

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0

Place = Callable[[pyarrow.Table, np.ndarray, np.ndarray], None]
"""Puts rows, with their sizes and positions, into the tables they belong to."""


@dataclass
class Census:
    """What was counted on the way; `feature_shape` is None for rows without features."""

    num_read: int = 0
    num_kept: int = 0
    labels: set[str] = field(default_factory=set)
    feature_shape: list[int] | None = None


def fill(tables: Tables, rejects: Rejects, parts: Iterable[Part], config: DatasetConfig) -> Census:
    """Put every row where it belongs; holds a row group of each table and all ids in memory, no more."""
    census, pace, seen = Census(), Pace(config.key), Seen()
    place = _placement(config, tables)
    for file, parts_of_file in groupby(parts, key=lambda part: part.file):
        listed = _Listed(rejects, file, census)
        for part in parts_of_file:
            for batch in part.batches:
                repeated = _keep(batch, place, seen, config, census)
                listed.add(batch, repeated)
                pace.tick(census.num_read)
            listed.lines_before += part.lines_read
        listed.close()
    return census


def _keep(batch: Batch, place: Place, seen: "Seen", config: DatasetConfig, census: Census) -> np.ndarray:
    """Place a batch's rows; returns which of them are repeated and left out."""
    times = seen.count(batch.ids)
    census.labels |= batch.labels
    if config.rows.name == "features" and census.feature_shape is None and batch.num_features is not None:
        census.feature_shape = list(config.rows.shape or (batch.num_features,))
    repeated = times > 0
    if not config.drop_duplicates:
        place(_with_own_ids(batch.table, times), batch.sizes, batch.positions)
        census.num_kept += len(batch.ids)
        return np.zeros_like(repeated)
    table = batch.table.filter(pyarrow.array(~repeated)) if repeated.any() else batch.table
    place(table, batch.sizes[~repeated], batch.positions[~repeated])
    census.num_kept += len(table)
    return repeated


def _with_own_ids(table: pyarrow.Table, times: np.ndarray) -> pyarrow.Table:
    """Rows of equal content get ids of their own: the second one's ends in -2, and so on."""
    if not times.any():
        return table
    ids = [
        f"{row_id}-{before + 1}" if before else row_id
        for row_id, before in zip(table["row_id"].to_pylist(), times.tolist(), strict=True)
    ]
    return table.set_column(0, table.schema.field("row_id"), pyarrow.array(ids, pyarrow.string()))


def _placement(config: DatasetConfig, tables: Tables) -> Place:
    output = config.output
    if isinstance(output, TeacherInputsOutput):
        return lambda rows, sizes, positions: tables.open("teacher_inputs").add(rows, sizes)
    is_pretrain = isinstance(output, PretrainOutput)
    for split in SPLITS[is_pretrain:]:  # also those that will stay empty: readers find three files always
        tables.open(split)

    def place(rows: pyarrow.Table, sizes: np.ndarray, positions: np.ndarray) -> None:
        numbers = splits_of(positions, output)
        for number, split in enumerate(SPLITS):
            mine = numbers == number
            if not mine.any():
                continue
            chosen = rows.filter(pyarrow.array(mine))
            if isinstance(output, PretrainOutput) and number == 0:
                _add_to_shards(tables, chosen, sizes[mine], output.rows_per_shard)
            else:
                tables.open(split).add(chosen, sizes[mine])

    return place


def _add_to_shards(tables: Tables, rows: pyarrow.Table, sizes: np.ndarray, rows_per_shard: int) -> None:
    begin = 0
    while begin < len(rows):
        shard = tables.shard(rows_per_shard)
        end = min(len(rows), begin + rows_per_shard - shard.num_rows)
        shard.add(rows.slice(begin, end - begin), sizes[begin:end])
        begin = end


class Seen:
    """The ids of all rows so far."""

    def __init__(self) -> None:
        self._times: dict[int, int] = {}

    def count(self, ids: np.ndarray) -> np.ndarray:
        """How often each id was there before, and adds it."""
        times, before = self._times, []
        for row_id in ids.tolist():
            number = times.get(row_id, 0)
            before.append(number)
            times[row_id] = number + 1
        return np.array(before, dtype=np.int64)


class _Listed:
    """The rows of one file that are left out, in its order; blank lines at its end are no rows, and nobody's."""

    def __init__(self, rejects: Rejects, file: str, census: Census):
        self._rejects, self._file, self._census = rejects, file, census
        self._blank: list[BadRow] = []
        self._num_rows = 0
        self.lines_before = 0

    def add(self, batch: Batch, repeated: np.ndarray) -> None:
        is_blank = [bad.step == "read" and bad.row.reason == BLANK and not bad.row.raw.strip() for bad in batch.bad]
        num_blank = 0  # at the batch's end
        if len(batch.numbers) == 0 or (batch.bad and batch.bad[-1].number > batch.numbers[-1]):
            last_kept = batch.numbers[-1] if len(batch.numbers) else -1
            while (
                num_blank < len(is_blank)
                and is_blank[-1 - num_blank]
                and (batch.bad[-1 - num_blank].number > last_kept)
            ):
                num_blank += 1
        listed, held = batch.bad[: len(batch.bad) - num_blank], batch.bad[len(batch.bad) - num_blank :]
        if batch.num_read > num_blank:
            self._write_blank()
            self._num_rows += batch.num_read - num_blank
            self._census.num_read += batch.num_read - num_blank
        for row, row_id in self._in_order(batch, listed, repeated):
            if row_id is None:
                self._rejects.add(row.step, self._moved(row.row))
            else:
                self._rejects.add_duplicate(self._moved(row.row), row_id)
        self._blank += [self._moved(bad.row) for bad in held]

    def close(self) -> None:
        """At the file's end."""
        if self._num_rows == 0:
            self._rejects.add("read", BadRow(self._file, None, "no rows in the file"))
            self._census.num_read += 1

    def _in_order(self, batch: Batch, listed: Sequence[Bad], repeated: np.ndarray) -> list[tuple[Bad, str | None]]:
        found: list[tuple[Bad, str | None]] = [(bad, None) for bad in listed]
        for index in np.flatnonzero(repeated).tolist():
            offset = int(batch.offsets[index])
            row = BadRow(
                self._file,
                int(batch.lines[index]),
                "duplicate",
                batch.excerpt_of(index),
                offset=None if offset < 0 else offset,
            )
            row_id = batch.table["row_id"][index].as_py()
            found.append((Bad(int(batch.numbers[index]), "deduplicate", row), row_id))
        return sorted(found, key=lambda each: each[0].number)

    def _moved(self, row: BadRow) -> BadRow:
        return row if row.line is None else row._replace(line=row.line + self.lines_before)

    def _write_blank(self) -> None:
        for row in self._blank:
            self._rejects.add("read", row)
        self._num_rows += len(self._blank)
        self._census.num_read += len(self._blank)
        self._blank = []


class Pace:
    """Logs how far a job of unknown length is, now and then."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic):
        self._what, self._clock = what, clock
        self._began = self._last_line = clock()

    def tick(self, num_rows: int) -> None:
        now = self._clock()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = num_rows / (now - self._began)
            logger.info("%s: %s rows read, %s rows/s", self._what, f"{num_rows:,}", f"{rate:,.0f}")
