"""Where every row goes: to its split, or to the rejects, in the order of the source."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow

from nexa_core.config.data import DatasetConfig, PretrainOutput, TeacherInputsOutput
from nexa_data.batches import Batch
from nexa_data.judge import NEAR_DUPLICATES, Judge, LeftOut
from nexa_data.listing import Census, Listing
from nexa_data.near_rows import NearRows, row_id_of
from nexa_data.overlaps import OverlapTable
from nexa_data.parts import Part
from nexa_data.quality.scores import ScoreTable
from nexa_data.rejects import Rejects
from nexa_data.seen import Seen
from nexa_data.split import SPLITS, splits_of
from nexa_data.tables import Tables

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0

Place = Callable[[pyarrow.Table, Batch, np.ndarray], None]
"""Puts those of a batch's rows that are kept into the tables they belong to."""


@dataclass(frozen=True)
class Beside:
    """What is written beside the rows, where there are steps that ask for it."""

    scores: ScoreTable | None = None
    """Takes what the quality steps measured of each row."""
    overlaps: OverlapTable | None = None
    """Takes the rows that repeat evaluation texts."""

    def close(self) -> dict[str, int]:
        """Write what is buffered; returns the number of rows of each table."""
        tables = {"scores": self.scores, "overlaps": self.overlaps}
        return {name: table.close() for name, table in tables.items() if table is not None}


def fill(
    tables: Tables, rejects: Rejects, parts: Iterable[Part], config: DatasetConfig, *, beside: Beside, near: NearRows
) -> Census:
    """Put every row where it belongs; holds a row group of each table and all ids in memory, no more.

    Args:
        near: the rows that are left out as near duplicates of others.
    """
    census, pace = Census(), Pace(config.key)
    sieve = _Sieve(config, _placement(config, tables), census, beside, near)
    for file, parts_of_file in groupby(parts, key=lambda part: part.file):
        listed = Listing(rejects, file, census)
        for part in parts_of_file:
            for batch in part.batches:
                listed.add(batch, sieve.keep(batch, file, listed.lines_before))
                pace.tick(census.num_read)
            listed.lines_before += part.lines_read
        listed.close()
    return census


class _Sieve:
    """Decides of each canonical row whether it is kept."""

    def __init__(self, config: DatasetConfig, place: Place, census: Census, beside: Beside, near: NearRows):
        self._config, self._place, self._census, self._beside, self._near = config, place, census, beside, near
        self._judge, self._seen = Judge(config), Seen()

    def keep(self, batch: Batch, file: str, lines_before: int) -> list[LeftOut]:
        """Place what is kept; returns the others."""
        census, config = self._census, self._config
        census.labels |= batch.labels
        if config.rows.name == "features" and census.feature_shape is None and batch.num_features is not None:
            census.feature_shape = list(config.rows.shape or (batch.num_features,))
        left_out, is_kept = self._judge(batch)
        if self._beside.scores is not None:
            removed_by = np.full(len(is_kept), "", dtype=object)
            for each in left_out:
                removed_by[each.index] = each.step
            self._beside.scores.add(batch, file, batch.lines + lines_before, removed_by)
        times = np.zeros(len(is_kept), dtype=np.int64)
        times[is_kept] = self._seen.count(batch.ids[is_kept])
        if config.drop_duplicates:
            left_out += self._repeated(batch, times) + self._nearly_repeated(batch, is_kept & (times == 0))
            is_kept[[each.index for each in left_out]] = False
            times[:] = 0
        if self._beside.overlaps is not None:
            self._beside.overlaps.add(batch, is_kept)
        self._place(_with_own_ids(batch.table, times), batch, is_kept)
        census.num_kept += int(is_kept.sum())
        return left_out

    def _repeated(self, batch: Batch, times: np.ndarray) -> list[LeftOut]:
        """Rows that were there before, each with the one that is kept, which may be another that is near them."""
        rows = np.flatnonzero(times).tolist()
        near = {each.row: each.kept for each in self._near.among(batch.ids)} if rows else {}
        return [LeftOut(row, "deduplicate", "duplicate", kept=near.get(row, row_id_of(batch.ids[row]))) for row in rows]

    def _nearly_repeated(self, batch: Batch, is_left: np.ndarray) -> list[LeftOut]:
        found = [near for near in self._near.among(batch.ids) if is_left[near.row]]
        return [
            LeftOut(near.row, NEAR_DUPLICATES, "near duplicate", f"similarity {near.jaccard:.2f}", near.kept)
            for near in found
        ]


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
        return lambda rows, batch, is_kept: tables.open("teacher_inputs").add(
            rows.filter(pyarrow.array(is_kept)), batch.sizes[is_kept]
        )
    is_pretrain = isinstance(output, PretrainOutput)
    for split in SPLITS[is_pretrain:]:  # also those that will stay empty: readers find three files always
        tables.open(split)

    def place(rows: pyarrow.Table, batch: Batch, is_kept: np.ndarray) -> None:
        numbers = splits_of(batch.positions, output)
        for number, split in enumerate(SPLITS):
            mine = is_kept & (numbers == number)
            if not mine.any():
                continue
            chosen = rows.filter(pyarrow.array(mine))
            if isinstance(output, PretrainOutput) and number == 0:
                _add_to_shards(tables, chosen, batch.sizes[mine], output.rows_per_shard)
            else:
                tables.open(split).add(chosen, batch.sizes[mine])

    return place


def _add_to_shards(tables: Tables, rows: pyarrow.Table, sizes: np.ndarray, rows_per_shard: int) -> None:
    begin = 0
    while begin < len(rows):
        shard = tables.shard(rows_per_shard)
        end = min(len(rows), begin + rows_per_shard - shard.num_rows)
        shard.add(rows.slice(begin, end - begin), sizes[begin:end])
        begin = end


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
