"""A run's folder: created once, and shown under the runbook's paths when finished."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nexa_core import durable
from nexa_core.paths import Layout

RUN_ID = re.compile(r"^.+_(?P<time>\d{8}_\d{6})(?:_(?P<attempt>\d+))?$")
CHECKPOINT_NAME = re.compile(r"^checkpoint_(epoch|step)(\d+)\.(?:pt|sharded)$")


@dataclass(frozen=True)
class RunFolder:
    """`artifacts/runs/<experiment>/<run_id>/` and the files in it."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def step_metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def cost(self) -> Path:
        return self.path / "cost.json"

    @property
    def health(self) -> Path:
        return self.path / "health.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def create_run(layout: Layout, *, experiment: str, name: str, now: datetime) -> RunFolder:
    """A new folder that no other run has or gets: `<name>_<YYYYMMDD>_<HHMMSS>`, with `_2`, `_3` when taken."""
    base = f"{name}_{now:%Y%m%d_%H%M%S}"
    attempt = 1
    while True:
        run_id = base if attempt == 1 else f"{base}_{attempt}"
        folder = layout.runs / experiment / run_id
        if not _is_known(layout, run_id) and durable.make_new_folder(folder):
            return RunFolder(folder)
        attempt += 1


def _is_known(layout: Layout, run_id: str) -> bool:
    """Whether any experiment has a run of this id: manifests lie in one folder for all of them."""
    return any(layout.runs.glob(f"*/{run_id}")) or (layout.run_manifests / f"{run_id}.json").exists()


def list_runs(layout: Layout, *, experiment: str = "*") -> list[RunFolder]:
    """The folders of an experiment's training runs, or of all, oldest first; evaluations are none."""
    found = [
        (match["time"], int(match["attempt"] or 1), path)
        for path in layout.runs.glob(f"{experiment}/*")
        if (match := RUN_ID.match(path.name)) and path.is_dir()
    ]
    folders = [RunFolder(path) for _, _, path in sorted(found)]
    return [folder for folder in folders if not is_evaluation(folder)]


def is_evaluation(run: RunFolder) -> bool:
    """Whether the folder says so itself: it has a run's config, so that it could be taken for an unfinished one."""
    try:
        return bool(json.loads(run.lineage.read_bytes())["kind"] == "evaluation")
    except (OSError, ValueError, KeyError):
        return False


def is_finished(layout: Layout, run: RunFolder) -> bool:
    """Whether a training run has come to its end: its manifest is written last."""
    return (layout.run_manifests / f"{run.run_id}.json").exists()


def publish_run(layout: Layout, run: RunFolder, checkpoints: list[Path]) -> None:
    """Show a finished run's metrics and checkpoints under `artifacts/`, in place of an earlier run's."""
    durable.publish(run.metrics, run.path.parent / "metrics.json")
    for stale in layout.checkpoints.glob("*.pt"):
        if stale.is_symlink() and stale.name not in {path.name for path in checkpoints}:
            durable.remove(stale)
    for path in checkpoints:
        durable.publish(path, layout.checkpoints / path.name)
