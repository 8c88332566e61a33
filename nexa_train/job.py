"""A training job: everything a config decides, worked out and checked before any folder is made."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nexa_core import digests
from nexa_core.config import DataConfig, RunConfig, load_config
from nexa_core.config.run import Data
from nexa_core.errors import UserError, not_built_yet
from nexa_core.lineage import describe_inputs
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, open_dataset
from nexa_data.prepare import prepare
from nexa_models import numerics
from nexa_models.checkpoint import Checkpoint, load_checkpoint
from nexa_models.encoding import Encoded, encode
from nexa_models.spec import ModelSpec, describe_model
from nexa_models.table import build_model
from nexa_train.baseline import unigram_log_probs
from nexa_train.order import Plan, derive_seed

logger = logging.getLogger(__name__)

# What may differ between a run and the checkpoint of another run that it starts from.
FREE_SECTIONS = ("name", "experiment", "evaluation", "tracking", "cost")
FREE_TRAINING_KEYS = ("epochs", "max_steps", "keep", "early_stopping", "checkpoints", "device")


@dataclass(frozen=True)
class Job:
    config: RunConfig
    layout: Layout
    dataset: Dataset
    spec: ModelSpec
    device: torch.device
    train_data: Encoded
    validation: Encoded
    plan: Plan
    model: nn.Module
    """With fresh weights, on the device."""
    source: Path | None
    """The checkpoint of another run to begin at."""
    inputs: dict[str, Any]
    """What the run's fingerprint is made of."""

    @property
    def fingerprint(self) -> str:
        return digests.of_value(self.inputs)


def make_job(config: RunConfig, layout: Layout, *, source: Path | None) -> Job:
    """Work a config out on this machine; writes nothing but a dataset that is not there yet.

    Raises:
        UserError: the config does not fit the data, the machine, or the checkpoint to begin at.
    """
    training = config.training
    if training.distributed.world_size > 1:
        what = f"Training with {training.distributed.world_size} processes"
        raise not_built_yet(what, "Set training.distributed.world_size: 1.")
    numerics.make_deterministic(training.num_threads)
    device = numerics.choose_device(training.device)
    numerics.check_precision(training.precision, device)
    dataset = ensure_dataset(layout, config.data)
    spec = describe_model(config.model, dataset)
    if source is not None:
        check_source(load_checkpoint(source), source, config)
    train_data, validation = (_encode_split(dataset, split, spec) for split in ("train", "val"))
    model = build_model(spec, seed=derive_seed(training.distributed.seed, "weights"))
    if spec.is_language_model:
        baseline = model.get_buffer("unigram_log_probs_V")
        baseline.copy_(unigram_log_probs(train_data, len(baseline)))
    inputs = describe_inputs(
        config=config.resolved(),
        dataset={"name": dataset.name, "version": dataset.version, "fingerprint": dataset.fingerprint},
        seed=training.distributed.seed,
        numerics=numerics.describe_numerics(device),
    )
    return Job(
        config=config,
        layout=layout,
        dataset=dataset,
        spec=spec,
        device=device,
        train_data=train_data,
        validation=validation,
        plan=_make_plan(config, train_data, validation),
        model=model.to(device),
        source=source,
        inputs=inputs if source is None else {**inputs, "begun_at": digests.of_file(source)},
    )


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


def check_source(checkpoint: Checkpoint, path: Path, config: RunConfig) -> None:
    """Raises UserError when the config differs from the checkpoint's in what decides the weights so far."""
    ours, theirs = _binding(config.resolved()), _binding(checkpoint.config)
    differing = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if differing:
        raise UserError(f"{path} was trained with another config; these keys differ: {', '.join(differing)}")


def _binding(config: dict[str, Any]) -> dict[str, str]:
    """The keys that decide a run's weights, flattened to `section.key`."""
    flat = {}
    for section, value in config.items():
        if section not in FREE_SECTIONS:
            for key, setting in value.items():
                if not (section == "training" and key in FREE_TRAINING_KEYS):
                    flat[f"{section}.{key}"] = json.dumps(setting, sort_keys=True)
    return flat


def _encode_split(dataset: Dataset, split: str, spec: ModelSpec) -> Encoded:
    encoded = encode(dataset.read_split(split), spec)
    for note in encoded.notes:
        logger.info("%s %s: %s", dataset.key, split, note)
    return encoded


def _make_plan(config: RunConfig, train_data: Encoded, validation: Encoded) -> Plan:
    training = config.training
    needs_validation = training.keep == "best" or training.early_stopping or training.checkpoints.save_top_k
    if needs_validation and not len(validation):
        raise UserError(
            f"Dataset {config.data.key} has no validation rows and the run needs them; prepare it with `val` above 0, "
            "or set training.keep: last, without early_stopping and save_top_k."
        )
    return Plan(
        num_rows=len(train_data),
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation_steps,
        epochs=training.epochs,
        max_steps=training.max_steps,
        seed=training.distributed.seed,
    )
