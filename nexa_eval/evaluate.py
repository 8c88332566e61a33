"""Evaluating a checkpoint: scores with intervals, predictions, and a folder of its own that says what was evaluated."""

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
from nexa_models.checkpoint import Checkpoint, load_checkpoint, model_of
from nexa_models.numerics import choose_device, describe_numerics, make_deterministic
from nexa_models.results import describe_scores, metrics_text, score_split, write_results

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class EvaluationResult:
    run: RunFolder
    checkpoint_path: Path
    config: RunConfig
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
    """
    checkpoint = load_checkpoint(checkpoint_path)
    config = _config_for(checkpoint, checkpoint_path, config_path, overrides)
    make_deterministic(config.training.num_threads)
    dataset = open_dataset(layout, config.data.dataset, config.data.version)
    _check_dataset(checkpoint, dataset)
    device = choose_device(config.training.device)
    logger.info("evaluating %s on %s %s", checkpoint_path, dataset.key, config.evaluation.split)
    predictions, scores = score_split(
        model_of(checkpoint).to(device),
        checkpoint.spec,
        dataset,
        config.evaluation.split,
        config.evaluation,
        device=device,
    )
    described = describe_scores(
        scores, checkpoint.spec, dataset=dataset.key, split=config.evaluation.split, step=checkpoint.step
    )
    run = create_run(layout, experiment=config.experiment, name=f"{config.name}_eval", now=now())
    durable.write_text(run.config, yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))
    numerics = describe_numerics(device)
    durable.write_json(run.environment, describe_environment(numerics=numerics))
    written = write_results(layout, run, described, predictions if config.evaluation.save_predictions else None)
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
        inputs={**inputs, "checkpoint": digests.of_file(checkpoint_path)},
        outputs=written,
        parents=[layout.relative(checkpoint_path), layout.relative(dataset.manifest_path)],
    )
    durable.publish(run.metrics, run.path.parent / "metrics.json")
    _write_manifest(layout, run, config_path or run.config, checkpoint_path, dataset, checkpoint, described, now())
    return EvaluationResult(run, checkpoint_path, config, described)


def _config_for(
    checkpoint: Checkpoint, checkpoint_path: Path, config_path: Path | None, overrides: Sequence[str]
) -> RunConfig:
    if config_path is not None:
        config = load_config(config_path, RunConfig, overrides=overrides)
    else:
        document = Document(value=checkpoint.config, places={}, name=f"config of {checkpoint_path}")
        for override in overrides:
            document.override(override)
        config = parse_config(document, RunConfig)
    if config.model.resolved() != checkpoint.spec.model:
        raise UserError(
            f"{config_path or 'The overridden config'} describes another model than {checkpoint_path} holds: "
            f"{config.model.resolved()} against {checkpoint.spec.model}. Use its own config by leaving --config out."
        )
    return config


def _check_dataset(checkpoint: Checkpoint, dataset: Dataset) -> None:
    known = checkpoint.dataset
    same_name = (known["name"], known["version"]) == (dataset.name, dataset.version)
    if same_name and known["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"Dataset {dataset.key} is not the one this checkpoint was trained with: it was made anew since, from "
            "other bytes or settings, and its test rows may have been trained on. Restore it, or evaluate on another version."
        )
    if tuple(dataset.labels) != checkpoint.spec.labels:
        raise UserError(
            f"Dataset {dataset.key} has the classes {list(dataset.labels)}, the model knows {list(checkpoint.spec.labels)}."
        )


def _write_manifest(
    layout: Layout,
    run: RunFolder,
    config_path: Path,
    checkpoint_path: Path,
    dataset: Dataset,
    checkpoint: Checkpoint,
    described: dict[str, Any],
    now: datetime,
) -> None:
    """An evaluation's manifest lies among the evaluation data: `runs/manifests/` holds training runs only."""
    manifest: Manifest = {
        "run_id": run.run_id,
        "config": layout.relative(config_path),
        "run_dir": layout.relative(run.path),
        "metrics": {name: metric["value"] for name, metric in described["metrics"].items()},
        "checkpoint": layout.relative(checkpoint_path),
        "created_at": now.isoformat(timespec="seconds"),
        "version": dataset.version,
        "dataset": dataset.key,
        "model": checkpoint.spec.model["name"],
    }
    path = layout.dataset_manifests("evaluation") / f"{run.run_id}.json"
    check_manifest(manifest, where=str(path))
    durable.write_json(path, manifest)


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("evaluate")
