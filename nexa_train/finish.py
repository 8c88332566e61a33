"""The end of a run: its weights chosen, scored, published, and its manifest written last."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from nexa_core import durable
from nexa_core.cost import CostMeter
from nexa_core.lineage import compare_with_twin, read_lineage, write_lineage
from nexa_core.manifest import Manifest, read_manifest, write_manifest
from nexa_core.metrics import Scores
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, publish_run
from nexa_models.checkpoint import load_checkpoint, model_of
from nexa_models.results import describe_scores, metrics_text, score_split, write_results
from nexa_models.sharded import SUFFIX, consolidate, files_of, is_sharded
from nexa_train.checkpoints import list_checkpoints, prune_checkpoints, ranked_checkpoints
from nexa_train.job import Job
from nexa_train.loop import State

logger = logging.getLogger(__name__)

PASS_SECONDS = 600.0
"""From the beginning of a pass over a batch to that of the next, or to the scores."""
WRITING_SECONDS = 3600.0
"""For the digests of all checkpoints and the files at the end."""


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
    job: Job,
    run: RunFolder,
    state: State,
    meter: CostMeter,
    *,
    config_path: Path,
    now: datetime,
    renew: Callable[[float], None],
    publishes: bool = True,
) -> TrainingResult:
    """Score the chosen checkpoint on the evaluation split and write all that marks the run as done.

    Args:
        renew: is told at each sign of progress how many seconds the next may take.
        publishes: whether the run is then shown under `artifacts/`, in place of an earlier one.
    """
    layout, config, dataset, spec = job.layout, job.config, job.dataset, job.spec
    steps_per_epoch = job.plan.steps_per_epoch
    prune_checkpoints(run.checkpoints, job.plan, config.training.checkpoints, state.history, finished=True)
    found = list_checkpoints(run.checkpoints, steps_per_epoch)
    ranked = ranked_checkpoints(run.checkpoints, steps_per_epoch, state.history)
    step, chosen = ranked[0] if config.training.keep == "best" else found[-1]
    checkpoints = [path for _, path in found]
    if is_sharded(chosen):
        chosen = _made_one_file(chosen)
        checkpoints.append(chosen)
    model = model_of(load_checkpoint(chosen))
    for part in (model, *model.children()):  # each token of a completion is a pass of the inner model
        part.register_forward_pre_hook(lambda *_: renew(PASS_SECONDS))
    predictions, scores = _score(job, model)
    renew(WRITING_SECONDS)
    described = describe_scores(scores, spec, dataset=dataset.key, split=config.evaluation.split, step=step)
    written = write_results(layout, run, described, predictions if config.evaluation.save_predictions else None)
    meter.write(step=state.step)
    begun = read_lineage(run)
    assert begun is not None
    inputs, parents = begun["inputs"], begun["parents"]
    outputs = [*(file for path in checkpoints for file in files_of(path)), *written]
    lineage = write_lineage(layout, run, kind="training", inputs=inputs, outputs=outputs, parents=parents)
    twin = compare_with_twin(layout, lineage)
    links = [link for name in ("best.pt", "last.pt") if (link := run.checkpoints / name).exists()]
    if publishes:
        publish_run(layout, run, [*(path for path in checkpoints if not is_sharded(path)), *links])
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
    path = write_manifest(layout, manifest, publishes=publishes)
    return TrainingResult(run, path, manifest, chosen, described, twin)


def release(state: State, *, is_sharded: bool) -> None:
    """Free what training held besides the weights; shards leave the GPU, where the whole model is to be scored."""
    state.optimizer.state.clear()
    if is_sharded:
        state.model.cpu()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _score(job: Job, model: nn.Module) -> tuple[pa.Table, Scores]:
    """Predictions and scores; of a model that needs several GPUs, on the processors."""
    score = partial(score_split, spec=job.spec, dataset=job.dataset, split=job.config.evaluation.split)
    try:
        return score(model.to(job.device), settings=job.config.evaluation, device=job.device)
    except torch.cuda.OutOfMemoryError:
        if not job.is_sharded:
            raise
    logger.info("the whole model has no room on one GPU: it is scored on the processors")
    torch.cuda.empty_cache()
    return score(model.cpu(), settings=job.config.evaluation, device=torch.device("cpu"))


def _made_one_file(chosen: Path) -> Path:
    """The consolidated checkpoint beside the sharded one, with the same links to it."""
    whole = consolidate(chosen)
    for name in ("best", "last"):
        if (chosen.parent / f"{name}{SUFFIX}").resolve() == chosen.resolve():
            durable.publish(whole, chosen.parent / f"{name}.pt")
    return whole


def read_result(layout: Layout, run: RunFolder) -> TrainingResult:
    """The result of a run that has finished before."""
    path = layout.run_manifests / f"{run.run_id}.json"
    manifest = read_manifest(path)
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    lineage = read_lineage(run)
    twin = None if lineage is None else compare_with_twin(layout, lineage)
    return TrainingResult(run, path, manifest, layout.absolute(manifest["checkpoint"]), metrics, twin)
