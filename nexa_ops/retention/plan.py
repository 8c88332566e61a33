"""What `nexa clean` would delete, decided before anything is: by the policy's rules, and never what is kept."""

import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.config.policy import PolicyConfig
from nexa_core.durable import TEMPORARY_SUFFIX
from nexa_core.errors import UserError
from nexa_core.holder import is_held, read_holder, started_at
from nexa_core.lineage import Lineage
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.runs import CHECKPOINT_NAME, RunFolder
from nexa_ops.retention.kept import Reasons, find_kept, linked, read_lineages
from nexa_ops.runs.pins import pinned
from nexa_ops.runs.states import Found, find_runs, standing_of
from nexa_ops.runs.table import age_text, size_of, size_text

logger = logging.getLogger(__name__)

WRITER = re.compile(rf"\..*\.(?P<pid>\d+){re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Item:
    """Something that may go."""

    path: Path
    size_bytes: int
    rule: str
    why: str
    run: RunFolder | None = None
    """The run that must not be written to meanwhile."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint that a rule would have had go, but for the reason."""

    path: Path
    why: str


@dataclass(frozen=True)
class Plan:
    root: Path
    items: tuple[Item, ...]
    kept: tuple[Kept, ...]

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)

    def as_json(self) -> dict[str, Any]:
        return {
            "size_bytes": self.size_bytes,
            "items": [
                {"path": self._name(each.path), "size_bytes": each.size_bytes, "rule": each.rule, "why": each.why}
                for each in self.items
            ],
            "kept": [{"path": self._name(each.path), "why": each.why} for each in self.kept],
        }

    def as_text(self) -> str:
        lines = [f"{size_text(each.size_bytes):>9}  {self._name(each.path)}  ({each.why})" for each in self.items]
        reasons: dict[str, int] = {}
        for each in self.kept:
            reasons[each.why] = reasons.get(each.why, 0) + 1
        if reasons:
            counted = ", ".join(f"{count:,} {why}" for why, count in sorted(reasons.items()))
            lines.append(f"{len(self.kept):,} checkpoints stay: {counted}")
        lines.append(f"{len(self.items):,} to delete, {size_text(self.size_bytes)}")
        return "\n".join(lines)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.root)


@dataclass(frozen=True)
class _Lab:
    """What the rules look at."""

    layout: Layout
    now: datetime
    runs: tuple[tuple[Found, str], ...]
    """With the state of each."""
    pins: set[str]
    kept: Reasons
    lineages: dict[str, Lineage]

    def why_kept(self, found: Found, path: Path, stems: dict[str, str]) -> str:
        """Why a checkpoint stays whatever is newer; empty where it may go."""
        return "pinned" if found.run_id in self.pins else stems.get(path.stem, "")

    def is_free(self, found: Found, path: Path, stems: dict[str, str]) -> bool:
        return not self.why_kept(found, path, stems)

    def days_since(self, *paths: Path) -> float:
        """Since the newest of these was written to."""
        times = [path.lstat().st_mtime for path in paths if path.exists()]
        return (self.now.timestamp() - max(times, default=0)) / SECONDS_A_DAY


def make_plan(layout: Layout, policy: PolicyConfig, *, now: datetime) -> Plan:
    """Find what the policy lets go; reads all checkpoints that a decision hangs on, and writes nothing.

    Raises:
        UserError: what may name a checkpoint cannot be read.
    """
    lineages = read_lineages(layout)
    here = (each for each in find_runs(layout) if _lies_here(each.run))
    runs = tuple((each, standing.state) for each in here if (standing := standing_of(each)))
    lab = _Lab(layout, now, runs, pinned(layout), find_kept(layout, lineages), lineages)
    items: list[Item] = []
    kept: list[Kept] = []
    items += _temporary(lab, policy.temporary.after_days)
    items += _folders(lab, policy.folders.after_days)
    with Progress("looking at runs", total=len(runs), unit="runs") as progress:
        for number, (found, state) in enumerate(runs):
            if state not in ("running", "partial"):
                go, stay = _checkpoints(lab, found, policy)
                items += go
                kept += stay
            progress.update(number + 1)
    items += _logs(lab, policy.logs.after_days)
    items += _reproductions(lab, policy.reproductions.after_days)
    items += _cache(lab, policy.cache.after_days)
    return Plan(layout.root, tuple(_without_nested(items)), tuple(kept))


def _checkpoints(lab: _Lab, found: Found, policy: PolicyConfig) -> tuple[list[Item], list[Kept]]:
    """Those of a run that go and that stay; those are read, the newest first, until enough of them are found whole."""
    rule, run = policy.checkpoints, found.run
    paths = [path for path in run.checkpoints.glob("checkpoint_*") if CHECKPOINT_NAME.match(path.name)]
    paths = [path for path in paths if not path.is_symlink()]
    days = lab.days_since(run.path, run.metrics, run.step_metrics, *paths)
    if rule.after_days is None or days < rule.after_days or len(paths) <= rule.keep_newest:
        return [], []
    reasons = {**lab.kept, **linked(run)}
    stems = {path.stem: why for path, why in reasons.items() if path.parent == run.checkpoints.resolve()}
    if not any(lab.is_free(found, path, stems) for path in newest_first(paths)[rule.keep_newest :]):
        return [], [Kept(path, lab.why_kept(found, path, stems) or "the newest") for path in paths]
    go, stay = [], []
    whole: set[str] = set()  # a step may have a folder and a file made of it
    for path in newest_first(paths):
        if found.run_id in lab.pins:
            why = lab.why_kept(found, path, stems)
        elif path.stem in whole or len(whole) < rule.keep_newest:
            is_whole = _is_whole(
                path, lab.lineages.get(found.run_id, {}).get("outputs", {}).get(lab.layout.relative(path))
            )
            whole |= {path.stem} if is_whole else set()
            why = "the newest that are whole" if is_whole else "damaged, and newer than those that are whole"
        else:
            why = stems.get(path.stem, "")
        if why:
            stay.append(Kept(path, why))
        else:
            told = f"{len(whole)} newer ones of the run are whole; last written {age(days)} ago"
            go.append(Item(path, _size(path), "checkpoints", told, run))
    return go, stay


def newest_first(paths: list[Path]) -> list[Path]:
    """A run's checkpoints by their step; one that cannot be read comes first, so that nothing is held against it."""
    kinds = {path: CHECKPOINT_NAME.match(path.name) for path in paths}
    if len({match[1] for match in kinds.values() if match}) <= 1:
        return sorted(paths, key=lambda path: int(match[2]) if (match := kinds[path]) else 0, reverse=True)
    return sorted(paths, key=_step, reverse=True)


def _step(path: Path) -> float:
    """Read from within, where names of epochs and of steps stand beside each other; the tensors are not read."""
    from nexa_models.checkpoint import peek_step
    from nexa_models.sharded import is_sharded, open_checkpoint

    try:
        if is_sharded(path):
            return open_checkpoint(path, tensors=False).step
        return peek_step(path)
    except UserError:
        return math.inf


def age(days: float) -> str:
    """How long ago, as a text."""
    return age_text(timedelta(days=days))


def _lies_here(run: RunFolder) -> bool:
    """Whether no part of it has been moved to a tier, which leaves a link."""
    return not any(path.is_symlink() for path in (run.path.parent, run.path, run.checkpoints))


def _is_whole(path: Path, recorded: str | None) -> bool:
    """By the digest that its run recorded; before that has finished, by the one within."""
    if recorded is not None and path.is_file():
        if digests.of_file(path) == recorded:
            return True
        logger.warning("%s is damaged: it does not have the digest that its run recorded", path)
        return False
    from nexa_models.sharded import open_checkpoint  # takes seconds to load, and most plans need none

    try:
        open_checkpoint(path)
    except UserError as error:
        logger.warning("%s", error)
        return False
    return True


def _folders(lab: _Lab, after_days: float | None) -> Iterator[Item]:
    for found, state in lab.runs:
        run = found.run
        if after_days is None or state in ("running", "finished") or found.run_id in lab.pins:
            continue
        has_checkpoint = any(run.checkpoints.glob("checkpoint_*"))
        if not has_checkpoint and lab.days_since(run.path, *run.path.glob("*")) >= after_days:
            why = "killed before it had begun" if state == "partial" else f"{state} before its first checkpoint"
            yield Item(run.path, _size(run.path), "folders", why, run)


def _logs(lab: _Lab, after_days: float | None) -> Iterator[Item]:
    runs = {found.run_id: found.run for found, _ in lab.runs}
    spared = {found.run_id for found, state in lab.runs if state == "running"} | lab.pins
    for path in sorted([*lab.layout.logs.glob("*"), *(lab.layout.logs / "wandb").glob("*run-*")]):
        run_id = _run_of_log(path)
        is_log = run_id != path.name or (path.is_dir() and any(path.glob("events.out.*")))
        written = list(path.rglob("*")) if path.is_dir() else []
        days = lab.days_since(path, *written)
        if after_days is not None and is_log and run_id not in spared and days >= after_days:
            yield Item(path, _size(path), "logs", f"last written {age(days)} ago", runs.get(run_id))


def _run_of_log(path: Path) -> str:
    """The run that a log is of, by its name; the name itself where that does not say so."""
    if path.parent.name == "wandb":
        return path.name.rpartition("-")[2]
    ending = next((each for each in (".log", ".pace.jsonl", ".prom") if path.name.endswith(each)), "")
    return path.name.removesuffix(ending)


def _reproductions(lab: _Lab, after_days: float | None) -> Iterator[Item]:
    for path in sorted((lab.layout.artifacts / "reproductions").glob("*")):
        days = lab.days_since(path, *path.rglob("*"))
        runs = [RunFolder(lock.parent) for lock in path.rglob("run.lock")]
        if after_days is not None and days >= after_days and not any(is_held(run, read_holder(run)) for run in runs):
            yield Item(path, _size(path), "reproductions", f"last written {age(days)} ago", *runs[-1:])


def _cache(lab: _Lab, after_days: float | None) -> Iterator[Item]:
    for path in sorted((lab.layout.cache / "prepare").glob("*")):
        days = lab.days_since(path, *path.rglob("*"))
        if after_days is not None and days >= after_days:
            yield Item(path, _size(path), "cache", f"written {age(days)} ago; it is made again when needed")


def _temporary(lab: _Lab, after_days: float | None) -> Iterator[Item]:
    running = [found.run.path for found, state in lab.runs if state == "running"]
    if after_days is None:
        return
    for top in (
        lab.layout.artifacts,
        lab.layout.processed,
        lab.layout.run_manifests,
        lab.layout.cache,
        lab.layout.logs,
    ):
        for path in sorted(top.rglob(f".*{TEMPORARY_SUFFIX}")):
            match = WRITER.fullmatch(path.name)
            is_written = match is not None and started_at(int(match["pid"])) is not None
            days = lab.days_since(path, *path.rglob("*"))
            if days >= after_days and not is_written and not any(path.is_relative_to(each) for each in running):
                yield Item(path, _size(path), "temporary", f"left unfinished {age(days)} ago")


def _without_nested(items: list[Item]) -> Iterator[Item]:
    """Each path once, and none below another."""
    paths = {item.path for item in items}
    seen: set[Path] = set()
    for item in items:
        if item.path not in seen and paths.isdisjoint(item.path.parents):
            seen.add(item.path)
            yield item


def _size(path: Path) -> int:
    return size_of(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size
