"""What quality steps measured, beside the limits that they judge by."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from nexa_core.config.data import DatasetConfig
from nexa_data.batches import score_name
from nexa_data.datasets import Dataset
from nexa_data.overview.sampling import read_groups
from nexa_data.quality import open_step, step_names

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
    edges: np.ndarray
    counts: np.ndarray
    is_log: bool


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
    limited = list(_limited(dataset))
    constant = {
        limit.replace("_", " "): ranges[key][0] for step, key, limit, *_ in limited if ranges[key][0] == ranges[key][1]
    }
    wanted = [each for each in limited if ranges[each[1]][0] < ranges[each[1]][1]]
    edges = {key: _edges(*ranges[key], limits) for _, key, _, *limits in wanted}
    counts = {key: np.zeros(len(bins) - 1, np.int64) for key, bins in edges.items()}
    num_rows = 0
    for table in read_groups([path], sorted(edges), is_sample=is_sample) if edges else ():
        num_rows += len(table)
        for key, bins in edges.items():
            counts[key] += np.histogram(table[key].to_numpy(), bins)[0]
    shown = [
        Score(step, name, least, most, edges[key], counts[key], _is_wide(*ranges[key]))
        for step, key, name, least, most in wanted
    ]
    return Scores(num_rows, tuple(shown), constant)


def _limited(dataset: Dataset) -> Iterator[tuple[str, str, str, float | None, float | None]]:
    """(step, column, score, least, most) of each score that has a limit."""
    config = DatasetConfig.model_validate_json(json.dumps(dataset.manifest["config"]))
    for index, (step, settings) in enumerate(zip(step_names(config), config.quality, strict=True)):
        for limit in open_step(settings).limits:
            if limit.least is not None or limit.most is not None:
                yield step, score_name(index, limit.score), limit.score, limit.least, limit.most


def _ranges(path: Path) -> dict[str, tuple[float, float]]:
    """The least and greatest value of each score, as the file's own statistics tell them."""
    found: dict[str, tuple[float, float]] = {}
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            described = file.metadata.row_group(group)
            for index in range(described.num_columns):
                column = described.column(index)
                if column.physical_type == "DOUBLE":
                    least, most = found.get(column.path_in_schema, (np.inf, -np.inf))
                    told = column.statistics
                    found[column.path_in_schema] = (min(least, told.min), max(most, told.max))
    return found


def _is_wide(least: float, most: float) -> bool:
    return least >= 0 and most > WIDE


def _edges(least: float, most: float, limits: Sequence[float | None]) -> np.ndarray:
    """Edges of bins around all values and around limits that lie close by; no bin is on both sides of a limit."""
    low, high = least - (most - least), most + (most - least)
    near = [limit for limit in limits if limit is not None and low <= limit <= high]
    low, high = min([least, *near]), max([most, *near])
    if not _is_wide(least, most):
        edges = np.linspace(low, high, NUM_BINS + 1)
    elif low > 0:
        edges = np.geomspace(low, high, NUM_BINS + 1)
    else:
        edges = np.insert(np.geomspace(min(1, high), high, NUM_BINS), 0, low)
    at_least, at_most = limits
    sides = [] if at_least is None else [at_least]
    sides += [] if at_most is None else [np.nextafter(at_most, np.inf)]  # a row that has it is kept
    return np.unique([*edges, *(side for side in sides if low < side < high)])
