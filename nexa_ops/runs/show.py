"""One run in full: what it was made from, how far it came, what it left, and what can be done next."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from nexa_core.paths import Layout
from nexa_core.runs import CHECKPOINT_NAME, RunFolder
from nexa_models.scores import score_text
from nexa_ops.runs.follow import look_again
from nexa_ops.runs.pins import pinned
from nexa_ops.runs.searches import search_of
from nexa_ops.runs.states import Found
from nexa_ops.runs.table import (
    Row,
    age_text,
    describe,
    newest_text,
    read_or_empty,
    read_scores,
    size_of,
    size_text,
)

NUM_SHOWN = 3
"""Checkpoints that are named, the newest; of the others only how many there are."""


@dataclass(frozen=True)
class Shown:
    """A run in full."""

    row: Row
    folder: str
    log: str | None
    model: str | None
    dataset: str | None
    metrics: dict[str, dict[str, Any]]
    """Value, low and high of each score."""
    checkpoints: dict[str, int]
    """Size in bytes, by name; the oldest first."""
    result: str | None
    package: str | None
    parents: tuple[str, ...]
    process: str | None
    """Which one writes to it."""
    search: str | None
    """Which one it is a trial of."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), **self.row.as_json(), "row": None} | {"parents": list(self.parents)}

    def as_text(self, *, now: datetime) -> str:
        return "\n".join(f"{name:<12} {value}" for name, value in self._lines(now) if value)

    def _lines(self, now: datetime) -> Iterator[tuple[str, str | None]]:
        row = self.row
        yield "run", f"{row.run_id} ({row.state}{', pinned' if row.is_pinned else ''})"
        yield "ended", row.ended
        yield "process", self.process
        yield "begun", f"{row.begun_at:%Y-%m-%d %H:%M:%S} UTC, {age_text(now - row.begun_at)} ago"
        yield "steps", None if row.step is None else f"{row.step:,} of {_number(row.num_steps)}"
        yield "model", self.model
        yield "dataset", self.dataset
        for name, scored in self.metrics.items():
            yield "score", score_text(name, scored["value"], scored.get("low"), scored.get("high"))
        if not self.metrics:
            yield "newest", newest_text(row)
        shown = [name for name in self.checkpoints if name == self.result] + list(self.checkpoints)[-NUM_SHOWN:]
        for name in dict.fromkeys(shown):
            yield (
                "checkpoint",
                f"{name} {size_text(self.checkpoints[name])}{' (the result)' if name == self.result else ''}",
            )
        if older := [size for name, size in self.checkpoints.items() if name not in shown]:
            yield "", f"and {len(older):,} older, {size_text(sum(older))}"
        for parent in self.parents:
            yield "made from", parent
        seconds = None if row.wall_seconds is None else f"{row.wall_seconds:,.1f} s"
        yield "cost", seconds if row.cost_usd is None else f"{seconds}, {row.cost_usd:.4f} USD"
        yield "package", self.package
        yield "log", self.log
        yield "folder", f"{self.folder} ({size_text(row.size_bytes)})"
        yield "search", self.search
        yield "next", _next(row, self.search)


def show_run(layout: Layout, found: Found) -> Shown:
    """All there is to say of a run.

    Raises:
        UserError: it is no run of training.
    """
    standing = look_again(layout, found)
    run = found.run
    row = describe(layout, found, standing, is_pinned=run.run_id in pinned(layout))
    manifest = read_or_empty(layout.run_manifests / f"{run.run_id}.json") if found.is_finished else {}
    config, scores = _config(run.config), read_scores(run)
    log, package = layout.logs / f"{run.run_id}.log", layout.packages / f"{run.run_id}.tar.gz"
    holder = standing.holder if standing.state == "running" else None
    return Shown(
        row=row,
        folder=layout.relative(run.path),
        log=layout.relative(log) if log.exists() else None,
        model=manifest.get("model") or config.get("model", {}).get("name"),
        dataset=manifest.get("dataset") or _dataset(config),
        metrics={
            name: {"value": value, **{end: scores.get(name, {}).get(end) for end in ("low", "high")}}
            for name, value in manifest.get("metrics", {}).items()
        },
        checkpoints={path.name: _size(path) for path in _oldest_first(run)},
        result=Path(manifest["checkpoint"]).name if manifest.get("checkpoint") else None,
        package=layout.relative(package) if package.exists() else None,
        parents=tuple(read_or_empty(run.lineage).get("parents", [])),
        process=None if holder is None else f"{holder.pid} on {holder.host}",
        search=search_of(layout, found),
    )


def _oldest_first(run: RunFolder) -> list[Path]:
    named = [(path, CHECKPOINT_NAME.match(path.name)) for path in run.checkpoints.glob("checkpoint_*")]
    found = [(path.stat().st_mtime_ns, int(match[2]), path) for path, match in named if match]
    return [path for _, _, path in sorted(found)]


def _number(number: int | None) -> str:
    return "an unknown number" if number is None else f"{number:,}"


def _config(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return {}


def _dataset(config: dict[str, Any]) -> str | None:
    data = config.get("data", {})
    return f"{data['dataset']}_{data.get('version')}" if data.get("dataset") else None


def _size(path: Path) -> int:
    return size_of(path) if path.is_dir() else path.stat().st_size


def _next(row: Row, search: str | None) -> str:
    match row.state:
        case "running":
            return f"nexa runs tail -f {row.run_id}, nexa runs stop {row.run_id}"
        case "finished":
            return f"nexa runs pin {row.run_id}, nexa package --checkpoint ..., nexa leaderboard"
        case "partial":
            return "it was killed before it had begun and cannot go on; nexa clean removes it"
        case "pruned":
            return "its search gave it up; the trials are compared in artifacts/tune"
        case _ if search is not None:
            return f"the same nexa tune command of search {search} goes on with it"
        case _:
            return f"nexa runs resume {row.run_id}"
