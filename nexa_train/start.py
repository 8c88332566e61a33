"""The beginning of a run: its data, its folder, and the state it starts or continues from."""

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from nexa_core import digests, durable
from nexa_core.config import DataConfig, RunConfig, load_config
from nexa_core.config.run import Data
from nexa_core.environment import describe_environment
from nexa_core.errors import UserError
from nexa_core.lineage import describe_inputs, read_lineage, write_lineage
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, create_run, list_runs
from nexa_data.datasets import Dataset, open_dataset
from nexa_data.prepare import prepare
from nexa_models.checkpoint import Checkpoint, load_checkpoint
from nexa_models.encoding import Encoded
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model
from nexa_train.baseline import unigram_log_probs
from nexa_train.checkpoints import newest_checkpoint
from nexa_train.loop import State
from nexa_train.optim import build_optimizer
from nexa_train.order import derive_seed

logger = logging.getLogger(__name__)

# What may differ between a run and the checkpoint of another run that it starts from.
FREE_SECTIONS = ("name", "experiment", "evaluation", "tracking", "cost")
FREE_TRAINING_KEYS = ("epochs", "max_steps", "keep", "early_stopping", "checkpoints", "device")


def ensure_dataset(layout: Layout, data: Data) -> Dataset:
    """The prepared dataset; made now from `data.prepare` when it is not there yet."""
    manifest_path = layout.dataset_manifests("training") / f"{data.key}.json"
    if not manifest_path.exists() and data.prepare is not None:
        config = load_config(Path(data.prepare), DataConfig)
        wanted = tuple(dataset for dataset in config.datasets if dataset.key == data.key)
        if not wanted:
            there = ", ".join(dataset.key for dataset in config.datasets)
            raise UserError(f"{data.prepare} does not make dataset {data.key}. It makes: {there}")
        logger.info("dataset %s is not there yet: preparing it from %s", data.key, data.prepare)
        prepare(DataConfig(datasets=wanted), layout)
    return open_dataset(layout, data.dataset, data.version)


def gather_inputs(
    config: RunConfig, dataset: Dataset, *, numerics: dict[str, Any], resume_from: Path | None
) -> dict[str, Any]:
    """The lineage inputs of a run: what its fingerprint is made of."""
    inputs = describe_inputs(
        config=config.resolved(),
        dataset=describe_dataset(dataset),
        seed=config.training.distributed.seed,
        numerics=numerics,
    )
    return inputs if resume_from is None else {**inputs, "resumed_from": digests.of_file(resume_from)}


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    return {"name": dataset.name, "version": dataset.version, "fingerprint": dataset.fingerprint}


def find_unfinished(layout: Layout, config: RunConfig) -> RunFolder | None:
    """The newest run of exactly this config that has no manifest yet."""
    for run in reversed(list_runs(layout, experiment=config.experiment)):
        finished = (layout.run_manifests / f"{run.run_id}.json").exists()
        if not finished and run.config.exists() and run.lineage.exists() and _config_of(run) == config.resolved():
            return run
    return None


def find_finished(layout: Layout, config: RunConfig) -> RunFolder | None:
    """The newest finished training run of exactly this config."""
    for run in reversed(list_runs(layout, experiment=config.experiment)):
        finished = (layout.run_manifests / f"{run.run_id}.json").exists()
        if finished and run.config.exists() and _config_of(run) == config.resolved():
            return run
    return None


def begin_run(
    layout: Layout, config: RunConfig, inputs: dict[str, Any], *, now: datetime, resume_from: Path | None
) -> RunFolder:
    """A new run folder with its config, environment and, last, the lineage that makes it resumable."""
    run = create_run(layout, experiment=config.experiment, name=config.name, now=now)
    durable.write_text(run.config, yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))
    durable.write_json(run.environment, describe_environment(numerics=inputs["numerics"]))
    parents = [layout.relative(layout.dataset_manifests("training") / f"{config.data.key}.json")]
    parents += [] if resume_from is None else [layout.relative(resume_from)]
    write_lineage(layout, run, kind="training", inputs=inputs, outputs=[], parents=parents)
    logger.info("run %s begins in %s", run.run_id, run.path)
    return run


def check_unchanged(run: RunFolder, inputs: dict[str, Any]) -> None:
    """Refuse to continue a run whose inputs are no longer those it began with: the result would be neither's.

    Raises:
        UserError: naming what changed.
    """
    lineage = read_lineage(run)
    before = {} if lineage is None else lineage["inputs"]
    changed = [key for key in sorted({*before, *inputs} - {"resumed_from"}) if before.get(key) != inputs.get(key)]
    if changed:
        raise UserError(
            f"Run {run.run_id} cannot be continued exactly: {', '.join(changed)} changed since it began. Put that "
            f"back, start a new run without --resume, or begin one at its checkpoint: --resume-from {run.checkpoints / 'last.pt'}"
        )


def read_source(path: Path, config: RunConfig) -> Checkpoint:
    """The checkpoint that a new run begins at.

    Raises:
        UserError: the config differs from the checkpoint's in what decides the weights so far.
    """
    checkpoint = load_checkpoint(path)
    ours, theirs = _binding(config.resolved()), _binding(checkpoint.config)
    differing = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if differing:
        raise UserError(f"{path} was trained with another config; these keys differ: {', '.join(differing)}")
    return checkpoint


def start_state(
    config: RunConfig, spec: ModelSpec, data: Encoded, checkpoint: Checkpoint | None, *, device: torch.device
) -> State:
    """Fresh weights from the seed, or everything as the checkpoint left it."""
    model = build_model(spec, seed=derive_seed(config.training.distributed.seed, "weights"))
    if checkpoint is None and spec.is_language_model:
        baseline = model.get_buffer("unigram_log_probs_V")
        baseline.copy_(unigram_log_probs(data, len(baseline)))
    if checkpoint is not None:
        model.load_state_dict(checkpoint.model)
    state = State(model.to(device), build_optimizer(model, config.training.optimizer))
    if checkpoint is not None:
        state.optimizer.load_state_dict(checkpoint.optimizer)
        state.step, state.history = checkpoint.step, list(checkpoint.history)
        logger.info("continuing at step %d", state.step)
    return state


def latest_state_of(run: RunFolder, steps_per_epoch: int) -> Checkpoint | None:
    """The newest verified checkpoint of an unfinished run, after clearing away what its killed writer left."""
    durable.remove_partial_files(run.path)
    checkpoint = newest_checkpoint(run.checkpoints, steps_per_epoch)
    if checkpoint is None:
        logger.info("run %s has no checkpoint yet and starts from its beginning", run.run_id)
    return checkpoint


def _binding(config: dict[str, Any]) -> dict[str, str]:
    """The keys that decide a run's weights, flattened to `section.key`."""
    flat = {}
    for section, value in config.items():
        if section not in FREE_SECTIONS:
            for key, setting in value.items():
                if not (section == "training" and key in FREE_TRAINING_KEYS):
                    flat[f"{section}.{key}"] = json.dumps(setting, sort_keys=True)
    return flat


def _config_of(run: RunFolder) -> Any:
    return yaml.safe_load(run.config.read_text(encoding="utf-8"))
