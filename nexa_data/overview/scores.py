"""What quality steps measured, beside the limits that they judge by."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as parquet

from nexa_core.config.data import DatasetConfig
from nexa_data.batches import score_name
from nexa_data.datasets import Dataset
from nexa_data.overview.sampling import read_groups
from nexa_data.quality import Limit, open_step, step_names

NUM_BINS = 48
WIDE = 100.0
"""A score that is nowhere negative and goes beyond this is a count, and is shown on a logarithmic axis."""


@dataclass(frozen=True)
class Score:
    """One score of one step: how many rows lie in each bin, and between which limits a row is kept."""

    step: str
    name: str
    least: float | None
    most: float | None
    low: float
    """Of all values and of the limits that lie close by, the least."""
    high: float
    is_log: bool
    edges: np.ndarray
    counts: np.ndarray

    def is_kept(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Scores:
    num_rows: int
    """Rows whose scores were looked at."""
    shown: tuple[Score, ...]
    constant: Mapping[str, float]
    """Scores that are the same for all rows."""


def read_scores(dataset: Dataset, *, is_sample: bool) -> Scores | None:
    """The scores that have limits, of all rows or of a sample; None for a dataset without quality steps."""
    record = dataset.manifest.get("scores")
    if record is None or not record["rows"]:
        return None
    path = dataset.layout.absolute(record["path"])
    ranges = _ranges(path)
    limited = [(each, *ranges[each.column]) for each in _limited(dataset)]
    found = {each.column: _empty(each, low, high) for each, low, high in limited if low < high}
    num_rows = 0
    for table in read_groups([path], list(found), is_sample=is_sample) if found else ():
        num_rows += len(table)
        for column, score in found.items():
            score.counts[:] += np.histogram(table[column].to_numpy(), score.edges)[0]
    constant = {each.limit.score: low for each, low, high in limited if low == high}
    return Scores(num_rows, tuple(found.values()), constant)


class _Limited(NamedTuple):
    """A score that has a limit, and the column that it lies in."""

    step: str
    column: str
    limit: Limit


def _limited(dataset: Dataset) -> Iterator[_Limited]:
    config = DatasetConfig.model_validate_json(json.dumps(dataset.manifest["config"]))
    for index, (step, settings) in enumerate(zip(step_names(config), config.quality, strict=True)):
        for limit in open_step(settings).limits:
            if limit.least is not None or limit.most is not None:
                yield _Limited(step, score_name(index, limit.score), limit)


def _ranges(path: Path) -> dict[str, tuple[float, float]]:
    """The least and greatest value of each score, as the file's own statistics tell them."""
    found: dict[str, tuple[float, float]] = {}
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            described = file.metadata.row_group(group)
            for index in range(described.num_columns):
                column = described.column(index)
                if column.physical_type == "DOUBLE":
                    least, most = found.get(column.path_in_schema, (np.inf, -np.inf))
                    told = column.statistics
                    found[column.path_in_schema] = (min(least, told.min), max(most, told.max))
    return found


def _empty(limited: _Limited, low: float, high: float) -> Score:
    """The bins of a score whose values lie between `low` and `high`; no bin is on both sides of a limit."""
    limit, is_log = limited.limit, low >= 0 and high > WIDE
    ends = [each for each in (limit.least, limit.most) if each is not None]
    near = [each for each in ends if 2 * low - high <= each <= 2 * high - low]
    low, high = min([low, *near]), max([high, *near])
    begin, end = _with_room(low, high, near, is_log=is_log)
    edges = np.geomspace(begin, end, NUM_BINS + 1) if is_log else np.linspace(begin, end, NUM_BINS + 1)
    edges[0] = min(begin, low)
    sides = [] if limit.least is None else [limit.least]
    sides += [] if limit.most is None else [np.nextafter(limit.most, np.inf)]  # a row that has it is kept
    edges = np.unique([*edges, *(side for side in sides if begin < side < end)])
    counts = np.zeros(len(edges) - 1, np.int64)
    return Score(limited.step, limit.score, limit.least, limit.most, low, high, is_log, edges, counts)


def _with_room(low: float, high: float, limits: Sequence[float], *, is_log: bool) -> tuple[float, float]:
    """Where the axis begins and ends: a limit at its end would leave no room for the rows that just keep to it."""
    if is_log:
        low = max(low, 0.5)
        return low / 1.1 if low in limits else low, high * 1.1 if high in limits else high
    room = (high - low) / NUM_BINS * 2
    return low - room if low in limits else low, high + room if high in limits else high
