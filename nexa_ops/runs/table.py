"""The table of runs: id, state, step, newest number, age, size and cost; filters that read no more than they need."""

import json
import operator
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.manifest import Manifest
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_models.scores import main_score, score_text
from nexa_ops.runs.pins import pinned
from nexa_ops.runs.states import Found, Standing, State, find_runs, refuse_unknown_state, standing_of

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
CONDITION = re.compile(r"\s*(?P<metric>[\w.@/-]+)\s*(?P<how>>=|<=|>|<|=)\s*(?P<value>[-+.\deE]+)\s*")
PERIOD = re.compile(r"(?P<count>\d+)(?P<unit>[mhdw])")
UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
LAST_BYTES = 4096
"""Of a file of JSON lines, to find the last one in."""


@dataclass(frozen=True)
class Row:
    """A run as it is listed."""

    run_id: str
    experiment: str
    state: State
    step: int | None
    num_steps: int | None
    metric: str | None
    """The score that stands for a finished run; of another the last loss that has been written."""
    value: float | None
    low: float | None
    high: float | None
    """Of a score its 95% interval; None where that is unknown or without bound, and of a loss."""
    begun_at: datetime
    size_bytes: int
    wall_seconds: float | None
    cost_usd: float | None
    is_pinned: bool
    ended: str | None
    """Why an unfinished run is not running, where its process could say so."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "begun_at": self.begun_at.isoformat()}


@dataclass(frozen=True)
class Table:
    rows: tuple[Row, ...]
    num_more: int
    """Which fit as well and are older."""

    def as_json(self) -> list[dict[str, Any]]:
        return [row.as_json() for row in self.rows]

    def as_text(self, *, now: datetime) -> str:
        if not self.rows:
            return "no such runs; nexa train begins one"
        cells: list[tuple[str, ...]] = [("run", "state", "step", "newest", "age", "size", "cost")]
        cells += [_cells(row, now) for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        if self.num_more:
            lines.append(f"{self.num_more:,} older ones are not shown: --limit 0 shows all")
        return "\n".join(lines)


@dataclass(frozen=True)
class Filters:
    """What is asked of a run; what is empty or None is not asked."""

    states: tuple[str, ...] = ()
    experiment: str | None = None
    since: datetime | None = None
    where: tuple[str, ...] = ()


def list_rows(layout: Layout, filters: Filters, *, limit: int) -> Table:
    """The newest runs that pass the filters; 0 means all.

    Raises:
        UserError: a filter cannot be understood, or names an experiment or metric that no run has.
    """
    for state in filters.states:
        refuse_unknown_state(state)
    found = find_runs(layout)
    if filters.experiment is not None and not any(each.experiment == filters.experiment for each in found):
        raise UserError(unknown("experiment", filters.experiment, {each.experiment for each in found}))
    kept = list(_keep(layout, found, filters))
    shown = kept[:limit] if limit else kept
    pins = pinned(layout)
    rows = [describe(layout, each, standing, is_pinned=each.run_id in pins) for each, standing in shown]
    return Table(tuple(rows), len(kept) - len(shown))


def parse_since(text: str, *, now: datetime) -> datetime:
    """`90m`, `12h`, `7d`, `2w` ago, or a date (UTC).

    Raises:
        UserError: it is neither.
    """
    if match := PERIOD.fullmatch(text):
        return now - int(match["count"]) * UNITS[match["unit"]]
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--since {text}: expected 90m, 12h, 7d, 2w, or a date like 2026-01-31.") from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def describe(layout: Layout, found: Found, standing: Standing, *, is_pinned: bool) -> Row:
    """All that is listed of one run."""
    run = found.run
    manifest = read_or_empty(layout.run_manifests / f"{run.run_id}.json") if found.is_finished else {}
    cost = read_or_empty(run.cost)
    done = cost["attempts"][-1].get("last_step") if cost.get("attempts") else None
    holder = standing.holder
    noted = None if holder is None else holder.step
    metric, value = _newest_number(run, manifest)
    scored = read_scores(run).get(metric or "", {})
    return Row(
        run_id=run.run_id,
        experiment=found.experiment,
        state=standing.state,
        step=max((step for step in (done, noted) if step is not None), default=None),
        num_steps=done if found.is_finished else None if holder is None else holder.num_steps,
        metric=metric,
        value=value,
        low=scored.get("low"),
        high=scored.get("high"),
        begun_at=found.begun_at,
        size_bytes=size_of(run.path),
        wall_seconds=cost.get("wall_seconds"),
        cost_usd=cost.get("cost_usd"),
        is_pinned=is_pinned,
        ended=standing.ending.said if standing.ending else None,
    )


def read_or_empty(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where it is not there, or not whole."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_scores(run: RunFolder) -> dict[str, dict[str, Any]]:
    """A finished run's scores with the ends of their intervals; none where they cannot be read."""
    return read_or_empty(run.metrics).get("metrics", {})


def size_of(folder: Path) -> int:
    """Bytes of all files below it; a link counts nothing."""
    total = 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                total += size_of(Path(entry.path))
            elif not entry.is_symlink():
                total += entry.stat().st_size
    except FileNotFoundError:  # removed meanwhile
        pass
    return total


def size_text(size_bytes: float) -> str:
    """`1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def age_text(age: timedelta) -> str:
    """`3 h`: in the largest unit of which there is a whole one."""
    seconds = int(age.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{max(0, seconds)} s"


def _keep(layout: Layout, found: list[Found], filters: Filters) -> Iterator[tuple[Found, Standing]]:
    """Those that pass, the cheap questions asked first."""
    conditions = [_parse_condition(text) for text in filters.where]
    known: set[str] = set()
    num_kept = 0
    for each in found:
        if filters.experiment not in (None, each.experiment) or (filters.since and each.begun_at < filters.since):
            continue
        standing = standing_of(each)
        if standing is None or (filters.states and standing.state not in filters.states):
            continue
        if conditions:
            metrics = read_or_empty(layout.run_manifests / f"{each.run_id}.json").get("metrics", {})
            known.update(metrics)
            if not all(name in metrics and holds(metrics[name]) for name, holds in conditions):
                continue
        num_kept += 1
        yield each, standing
    if not num_kept and known:
        for name, _ in conditions:
            if name not in known:
                raise UserError(unknown("metric", name, known))


def _parse_condition(text: str) -> tuple[str, Callable[[float], bool]]:
    match = CONDITION.fullmatch(text)
    try:
        value = float(match["value"] if match else "")
    except ValueError:
        raise UserError(
            f"--where '{text}': expected a metric, one of >= <= > < =, and a number: accuracy>0.9"
        ) from None
    assert match is not None
    compare = COMPARISONS[match["how"]]
    return match["metric"], lambda score: compare(score, value)


def _newest_number(run: RunFolder, manifest: Manifest) -> tuple[str | None, float | None]:
    if manifest:
        name = main_score(manifest["metrics"])
        return name, manifest["metrics"].get(name)
    for line in reversed(_last_lines(run.step_metrics)):
        if "loss" in line:
            return "loss", line["loss"]
    return None, None


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines at the end of a file of JSON lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LAST_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    return [json.loads(line) for line in (lines if size <= LAST_BYTES else lines[1:]) if line]


def newest_text(row: Row) -> str:
    """A finished run's main score with its interval, another's last loss."""
    if row.value is None or row.metric is None:
        return ""
    if row.state != "finished":
        return f"{row.metric} {row.value:.4f}"
    return score_text(row.metric, row.value, row.low, row.high)


def _cells(row: Row, now: datetime) -> tuple[str, ...]:
    step = "" if row.step is None else f"{row.step:,}"
    total = "" if row.num_steps is None else f"/{row.num_steps:,}"
    seconds = "" if row.wall_seconds is None else f"{row.wall_seconds:,.0f} s"
    price = "" if row.cost_usd is None else f" {row.cost_usd:.2f} USD"
    state = f"{row.state}, pinned" if row.is_pinned else row.state
    return (
        row.run_id, state, f"{step or '0'}{total}" if total or step else "", newest_text(row),
        age_text(now - row.begun_at), size_text(row.size_bytes), f"{seconds}{price}",
    )  # fmt: skip
