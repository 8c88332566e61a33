"""Evaluating a checkpoint: scores with intervals, predictions, and a folder of its own that says what was evaluated."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from nexa_core import digests, durable
from nexa_core.config import RunConfig, load_config
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.environment import describe_environment
from nexa_core.errors import UserError
from nexa_core.lineage import describe_inputs, write_lineage
from nexa_core.manifest import Manifest, check_manifest
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, create_run
from nexa_data.datasets import Dataset, open_dataset
from nexa_eval.clean_subset import Overlapping, find_overlapping, score_clean
from nexa_models.checkpoint import Checkpoint, load_checkpoint, model_of
from nexa_models.numerics import choose_device, describe_numerics, make_deterministic
from nexa_models.predict import DivergedModel
from nexa_models.results import describe_scores, metrics_text, score_split, write_results
from nexa_models.sharded import is_sharded

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Assignment:
    """A checkpoint and the split it is to be scored on, found to fit each other; nothing has been computed yet."""

    layout: Layout
    checkpoint_path: Path
    """The file itself, not a link to it: a link such as `last.pt` may show another file by the time this is done."""
    checkpoint_digest: str
    checkpoint: Checkpoint
    config: RunConfig
    config_path: Path | None
    """The file the config came from; None where it is the checkpoint's own."""
    dataset: Dataset
    overlapping: Overlapping | None
    """The rows of it that the model's training data repeats; None of the model's own dataset."""


@dataclass(frozen=True)
class EvaluationResult:
    run: RunFolder
    checkpoint: str
    """The file that was evaluated, as manifests name it."""
    checkpoint_digest: str
    metrics: dict[str, Any]
    """What `metrics.json` holds."""

    def as_text(self, layout: Layout) -> str:
        saved = f", predictions {layout.relative(self.run.predictions)}" if self.run.predictions.exists() else ""
        return f"{metrics_text(self.metrics)}\nmetrics {layout.relative(self.run.metrics)}{saved}"


def evaluate(
    checkpoint_path: Path,
    *,
    layout: Layout,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    now: Callable[[], datetime] = utc_now,
) -> EvaluationResult:
    """Score a checkpoint on the split its config names: the checkpoint's own config, or the one at `config_path`.

    Raises:
        UserError: the checkpoint or the dataset is missing or damaged, the config describes another model, or the
            dataset is not the one that the checkpoint knows under this name.
        GateError: the model has diverged, so there is nothing to score.
    """
    return carry_out(assign(checkpoint_path, layout=layout, config_path=config_path, overrides=overrides), now=now)


def assign(
    checkpoint_path: Path, *, layout: Layout, config_path: Path | None = None, overrides: Sequence[str] = ()
) -> Assignment:
    """Read all that an evaluation needs and check that it fits together. Raises UserError as `evaluate` does."""
    if checkpoint_path.is_dir() and not is_sharded(checkpoint_path):
        there = ", ".join(sorted(path.name for path in checkpoint_path.glob("*.pt"))) or "no *.pt file"
        raise UserError(f"{checkpoint_path} is a folder; give one file of it: {there}")
    real = checkpoint_path.resolve() if checkpoint_path.exists() else checkpoint_path
    checkpoint = load_checkpoint(real)
    config = _config_for(checkpoint, checkpoint_path, config_path, overrides)
    dataset = open_dataset(layout, config.data.dataset, config.data.version, category=config.data.category)
    _check_dataset(checkpoint, dataset)
    overlapping = find_overlapping(checkpoint, dataset, config.evaluation.split)
    return Assignment(layout, real, digests.of_file(real), checkpoint, config, config_path, dataset, overlapping)


def carry_out(assignment: Assignment, *, now: Callable[[], datetime] = utc_now) -> EvaluationResult:
    """Score the model, then write a folder of its own: `evaluate`'s second half."""
    config, checkpoint, dataset = assignment.config, assignment.checkpoint, assignment.dataset
    make_deterministic(config.training.num_threads)
    device = choose_device(config.training.device)
    split = config.evaluation.split
    name = assignment.layout.relative(assignment.checkpoint_path)
    logger.info("evaluating %s on %s %s", name, dataset.key, split)
    model = model_of(checkpoint).to(device)
    try:
        predictions, scores = score_split(model, checkpoint.spec, dataset, split, config.evaluation, device=device)
    except DivergedModel as error:
        raise DivergedModel(f"{assignment.checkpoint_path}: {error}") from None
    clean = None if assignment.overlapping is None else score_clean(predictions, checkpoint, assignment.overlapping)
    described = describe_scores(
        scores, checkpoint.spec, dataset=dataset.key, split=split, step=checkpoint.step, clean=clean
    )
    run = create_run(assignment.layout, experiment=config.experiment, name=f"{config.name}_eval", now=now())
    durable.write_text(run.config, yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))
    numerics = describe_numerics(device)
    durable.write_json(run.environment, describe_environment(numerics=numerics))
    saved = predictions if config.evaluation.save_predictions else None
    outputs = write_results(assignment.layout, run, described, saved)
    _write_lineage(assignment, run, outputs, numerics)
    durable.publish(run.metrics, run.path.parent / "metrics.json")
    _write_manifest(assignment, run, described, now())
    return EvaluationResult(run, name, assignment.checkpoint_digest, described)


def own_config(checkpoint: Checkpoint, checkpoint_path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config inside a checkpoint, with overrides put in place."""
    document = Document(value=copy.deepcopy(checkpoint.config), places={}, name=f"config of {checkpoint_path}")
    for override in overrides:
        document.override(override)
    return parse_config(document, RunConfig)


def _config_for(
    checkpoint: Checkpoint, checkpoint_path: Path, config_path: Path | None, overrides: Sequence[str]
) -> RunConfig:
    if config_path is None:
        config = own_config(checkpoint, checkpoint_path, overrides)
    else:
        config = load_config(config_path, RunConfig, overrides=overrides)
    ours, theirs = config.model.resolved(), checkpoint.spec.model
    if ours != theirs:
        raise UserError(
            f"{config_path or 'The overridden config'} describes another model than {checkpoint_path} holds: "
            f"{_difference(ours, theirs)}. Leave --config out to use the checkpoint's own."
        )
    return config


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What two model sections disagree on, in a few words."""
    if ours["name"] != theirs["name"]:
        return f"model.name is {ours['name']}, the checkpoint's is {theirs['name']}"
    mine, its = _flat(ours), _flat(theirs)
    keys = [key for key in sorted({*mine, *its}) if mine.get(key) != its.get(key)]
    return "; ".join(f"model.{key} is {mine.get(key)}, the checkpoint's is {its.get(key)}" for key in keys)


def _flat(model: dict[str, Any]) -> dict[str, Any]:
    parameters = {f"parameters.{key}": value for key, value in model["parameters"].items()}
    return {key: value for key, value in model.items() if key != "parameters"} | parameters


def _check_dataset(checkpoint: Checkpoint, dataset: Dataset) -> None:
    known, spec = checkpoint.dataset, checkpoint.spec
    same_name = (known["name"], known["version"]) == (dataset.name, dataset.version)
    if same_name and known["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"Dataset {dataset.key} is not the one this checkpoint was trained with: it was made anew since, from "
            "other bytes or settings, and its test rows may have been trained on. Restore it, or evaluate on another version."
        )
    facts = {
        "rows of": (dataset.kind, spec.kind),
        "the classes": (list(dataset.labels), list(spec.labels)),
        "rows of shape": (dataset.feature_shape, spec.feature_shape),
    }
    for what, (given, needed) in facts.items():
        if given != needed:
            raise UserError(f"Dataset {dataset.key} has {what} {given}; the model knows {what} {needed}.")


def _write_lineage(assignment: Assignment, run: RunFolder, outputs: list[Path], numerics: dict[str, Any]) -> None:
    config, dataset, layout = assignment.config, assignment.dataset, assignment.layout
    inputs = describe_inputs(
        config=config.resolved(),
        dataset={"name": dataset.name, "version": dataset.version, "fingerprint": dataset.fingerprint},
        seed=config.training.distributed.seed,
        numerics=numerics,
    )
    write_lineage(
        layout,
        run,
        kind="evaluation",
        inputs={**inputs, "checkpoint": assignment.checkpoint_digest},
        outputs=outputs,
        parents=[layout.relative(assignment.checkpoint_path), layout.relative(dataset.manifest_path)],
    )


def _write_manifest(assignment: Assignment, run: RunFolder, described: dict[str, Any], now: datetime) -> None:
    """An evaluation's manifest lies among the evaluation data: `runs/manifests/` holds training runs only."""
    layout, dataset = assignment.layout, assignment.dataset
    manifest: Manifest = {
        "run_id": run.run_id,
        "config": layout.relative(assignment.config_path or run.config),
        "run_dir": layout.relative(run.path),
        "metrics": {name: metric["value"] for name, metric in described["metrics"].items()},
        "checkpoint": layout.relative(assignment.checkpoint_path),
        "created_at": now.isoformat(timespec="seconds"),
        "version": dataset.version,
        "dataset": dataset.key,
        "model": assignment.checkpoint.spec.model["name"],
    }
    path = layout.dataset_manifests("evaluation") / f"{run.run_id}.json"
    check_manifest(manifest, where=str(path))
    durable.write_json(path, manifest)


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("evaluate")
