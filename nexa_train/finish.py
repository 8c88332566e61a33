"""The end of a run: its weights chosen, scored, published, and its manifest written last."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from nexa_data.datasets import Dataset

from nexa_core.config import RunConfig
from nexa_core.lineage import compare_with_twin, read_lineage, write_lineage
from nexa_core.manifest import Manifest, read_manifest, write_manifest
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, publish_run
from nexa_models.checkpoint import load_checkpoint, model_of
from nexa_models.results import describe_scores, metrics_text, score_split, write_results
from nexa_models.spec import ModelSpec
from nexa_train.checkpoints import best_step, checkpoint_name, list_checkpoints
from nexa_train.loop import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run left."""

    run: RunFolder
    manifest_path: Path
    manifest: Manifest
    checkpoint: Path
    metrics: dict[str, Any]
    """What `metrics.json` holds."""
    twin: str | None
    """One sentence on an earlier run with the same fingerprint, where there is one."""

    def as_text(self, layout: Layout) -> str:
        lines = [metrics_text(self.metrics)]
        lines += [] if self.twin is None else [self.twin]
        lines.append(f"run {self.run.run_id}: {layout.relative(self.run.path)}")
        lines.append(f"manifest {layout.relative(self.manifest_path)}, checkpoint {layout.relative(self.checkpoint)}")
        return "\n".join(lines)


def finish_run(
    layout: Layout,
    run: RunFolder,
    config: RunConfig,
    *,
    config_path: Path,
    dataset: Dataset,
    spec: ModelSpec,
    state: State,
    steps_per_epoch: int,
    write_cost: Callable[[], object],
    device: torch.device,
    now: datetime,
) -> TrainingResult:
    """Score the chosen checkpoint on the evaluation split and write all that marks the run as done."""
    step = best_step(state.history) if config.training.keep == "best" else state.step
    chosen = run.checkpoints / checkpoint_name(step, steps_per_epoch)
    model = model_of(load_checkpoint(chosen)).to(device)
    split = config.evaluation.split
    predictions, scores = score_split(model, spec, dataset, split, config.evaluation, device=device)
    described = describe_scores(scores, spec, dataset=dataset.key, split=split, step=step)
    written = write_results(layout, run, described, predictions if config.evaluation.save_predictions else None)
    write_cost()
    checkpoints = [path for _, path in list_checkpoints(run.checkpoints, steps_per_epoch)]
    begun = read_lineage(run)
    assert begun is not None
    lineage = write_lineage(
        layout,
        run,
        kind="training",
        inputs=begun["inputs"],
        outputs=[*checkpoints, *written],
        parents=begun["parents"],
    )
    twin = compare_with_twin(layout, lineage)
    publish_run(layout, run, [*checkpoints, run.checkpoints / "best.pt", run.checkpoints / "last.pt"])
    manifest: Manifest = {
        "run_id": run.run_id,
        "config": layout.relative(config_path),
        "run_dir": layout.relative(run.path),
        "metrics": {name: metric.value for name, metric in scores.metrics.items()},
        "checkpoint": layout.relative(chosen),
        "created_at": now.isoformat(timespec="seconds"),
        "version": dataset.version,
        "dataset": dataset.key,
        "model": spec.model["name"],
    }
    path = write_manifest(layout, manifest)
    return TrainingResult(run, path, manifest, chosen, described, twin)


def read_result(layout: Layout, run: RunFolder) -> TrainingResult:
    """The result of a run that has finished before."""
    path = layout.run_manifests / f"{run.run_id}.json"
    manifest = read_manifest(path)
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    return TrainingResult(run, path, manifest, layout.absolute(manifest["checkpoint"]), metrics, None)
