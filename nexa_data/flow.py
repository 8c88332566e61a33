"""Where every row goes: to its split, or to the rejects, in the order of the source."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow

from nexa_core.config.data import DatasetConfig, PretrainOutput, TeacherInputsOutput
from nexa_data.batches import Bad, Batch, score_name
from nexa_data.parts import Part
from nexa_data.quality import open_step, step_names
from nexa_data.quality.scores import ScoreTable
from nexa_data.rejects import Rejects
from nexa_data.sources.raw import BLANK, BadRow
from nexa_data.split import SPLITS, splits_of
from nexa_data.tables import Tables

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0

Place = Callable[[pyarrow.Table, np.ndarray, np.ndarray], None]
"""Puts rows, with their sizes and positions, into the tables they belong to."""


@dataclass(frozen=True)
class LeftOut:
    """A canonical row, the `index`-th of its batch, that the step `step` leaves out."""

    index: int
    step: str
    reason: str
    detail: str


@dataclass
class Census:
    """What was counted on the way; `feature_shape` is None for rows without features."""

    num_read: int = 0
    num_kept: int = 0
    labels: set[str] = field(default_factory=set)
    feature_shape: list[int] | None = None


def fill(
    tables: Tables, rejects: Rejects, parts: Iterable[Part], config: DatasetConfig, *, scores: ScoreTable | None
) -> Census:
    """Put every row where it belongs; holds a row group of each table and all ids in memory, no more.

    Args:
        scores: takes what the quality steps measured of each row, where there are such steps.
    """
    census, pace = Census(), Pace(config.key)
    sieve = _Sieve(config, _placement(config, tables), census, scores)
    for file, parts_of_file in groupby(parts, key=lambda part: part.file):
        listed = _Listed(rejects, file, census)
        for part in parts_of_file:
            for batch in part.batches:
                listed.add(batch, sieve.keep(batch, file, listed.lines_before))
                pace.tick(census.num_read)
            listed.lines_before += part.lines_read
        listed.close()
    return census


class _Sieve:
    """Decides of each canonical row whether it is kept."""

    def __init__(self, config: DatasetConfig, place: Place, census: Census, scores: ScoreTable | None):
        self._config, self._place, self._census, self._scores = config, place, census, scores
        self._steps = list(zip(step_names(config), map(open_step, config.quality), strict=True))
        self._seen = Seen()

    def keep(self, batch: Batch, file: str, lines_before: int) -> list[LeftOut]:
        """Place what is kept; returns the others."""
        census, config = self._census, self._config
        census.labels |= batch.labels
        if config.rows.name == "features" and census.feature_shape is None and batch.num_features is not None:
            census.feature_shape = list(config.rows.shape or (batch.num_features,))
        left_out, is_kept = self._judge(batch)
        if self._scores is not None:
            removed_by = np.full(len(is_kept), "", dtype=object)
            for each in left_out:
                removed_by[each.index] = each.step
            self._scores.add(batch, file, batch.lines + lines_before, removed_by)
        times = np.zeros(len(is_kept), dtype=np.int64)
        times[is_kept] = self._seen.count(batch.ids[is_kept])
        if config.drop_duplicates:
            left_out += [LeftOut(index, "deduplicate", "", "") for index in np.flatnonzero(times).tolist()]
            is_kept &= times == 0
            times[:] = 0
        table = _with_own_ids(batch.table, times)
        table = table if is_kept.all() else table.filter(pyarrow.array(is_kept))
        self._place(table, batch.sizes[is_kept], batch.positions[is_kept])
        census.num_kept += len(table)
        return left_out

    def _judge(self, batch: Batch) -> tuple[list[LeftOut], np.ndarray]:
        """What the quality steps leave out, each row by the first of them; and which rows are kept."""
        left_out: list[LeftOut] = []
        is_kept = np.ones(len(batch.ids), dtype=bool)
        for index, (name, step) in enumerate(self._steps):
            reasons = step.reasons({score: batch.scores[score_name(index, score)] for score in step.names})
            for row in np.flatnonzero(is_kept & (reasons != "")).tolist():
                measured = str(reasons[row]).split(" ")[0]
                value = batch.scores[score_name(index, measured)][row]
                left_out.append(LeftOut(row, name, str(reasons[row]), f"{value:g}"))
            is_kept &= reasons == ""
        return left_out, is_kept


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

    def add(self, batch: Batch, left_out: Sequence[LeftOut]) -> None:
        """The rows of a batch that were bad, and those that were left out."""
        num_blank = _count_blank_at_end(batch)
        listed, held = batch.bad[: len(batch.bad) - num_blank], batch.bad[len(batch.bad) - num_blank :]
        if batch.num_read > num_blank:
            self._write_blank()
            self._num_rows += batch.num_read - num_blank
            self._census.num_read += batch.num_read - num_blank
        rows = [(bad, "") for bad in listed] + [self._shown(batch, each) for each in left_out]
        for bad, row_id in sorted(rows, key=lambda each: each[0].number):
            if row_id:
                self._rejects.add_duplicate(self._moved(bad.row), row_id)
            else:
                self._rejects.add(bad.step, self._moved(bad.row))
        self._blank += [self._moved(bad.row) for bad in held]

    def close(self) -> None:
        """At the file's end."""
        if self._num_rows == 0:
            self._rejects.add("read", BadRow(self._file, None, "no rows in the file"))
            self._census.num_read += 1

    def _shown(self, batch: Batch, left_out: LeftOut) -> tuple[Bad, str]:
        """A row as it is listed, and of a repeated one its id."""
        index, offset = left_out.index, int(batch.offsets[left_out.index])
        row = BadRow(
            self._file,
            int(batch.lines[index]),
            left_out.reason,
            batch.excerpt_of(index),
            left_out.detail,
            None if offset < 0 else offset,
        )
        row_id = batch.table["row_id"][index].as_py() if left_out.step == "deduplicate" else ""
        return Bad(int(batch.numbers[index]), left_out.step, row), row_id

    def _moved(self, row: BadRow) -> BadRow:
        return row if row.line is None else row._replace(line=row.line + self.lines_before)

    def _write_blank(self) -> None:
        for row in self._blank:
            self._rejects.add("read", row)
        self._num_rows += len(self._blank)
        self._census.num_read += len(self._blank)
        self._blank = []


def _count_blank_at_end(batch: Batch) -> int:
    last_kept = batch.numbers[-1] if len(batch.numbers) else -1
    count = 0
    for bad in reversed(batch.bad):
        if bad.number < last_kept or bad.row.reason != BLANK or bad.row.raw.strip():
            break
        count += 1
    return count


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
