"""A training job: everything a config decides, worked out and checked before any folder is made."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nexa_core import digests
from nexa_core.config import DataConfig, RunConfig, load_config
from nexa_core.config.run import Data, deciding
from nexa_core.config.training import Training
from nexa_core.errors import UserError
from nexa_core.lineage import describe_inputs
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, open_dataset
from nexa_data.manifests import changed_settings, read_manifest
from nexa_data.prepare import prepare
from nexa_models import numerics
from nexa_models.causal_lm import CausalLm, check_packing
from nexa_models.checkpoint import Checkpoint
from nexa_models.encoding import Encoded, PackedRows, Sequences, Shapes, TextRows
from nexa_models.sharded import check_files, digest_of, is_sharded, open_checkpoint, read_about
from nexa_models.spec import ModelSpec, describe_model
from nexa_models.table import build_model
from nexa_models.token_rows import TokenRows
from nexa_train.baseline import unigram_log_probs
from nexa_train.distributed.world import World
from nexa_train.lesson import plan_lesson
from nexa_train.objectives import Objective, cross_entropy
from nexa_train.order import Plan, derive_seed
from nexa_train.shelf import Shelf

logger = logging.getLogger(__name__)

# What may differ between a run and the checkpoint of another run that it starts from.
FREE_SECTIONS = ("name", "experiment", "evaluation", "tracking", "cost")
FREE_TRAINING_KEYS = ("epochs", "max_steps", "keep", "early_stopping", "checkpoints", "device")
MICROBATCHES_IF_EXACT = 4  # so that 1, 2 and 4 processes share the same cut


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
    """With fresh weights, on the device; on the CPU where it is to be sharded."""
    is_exact: bool
    """Whether any number of processes gives the same bytes."""
    is_sharded: bool
    """Whether each process holds only a part of the weights: with fsdp, unless there is one process."""
    source: Path | None
    """The checkpoint of another run to begin at."""
    objective: Objective
    """What a microbatch's loss is."""
    teachers: tuple[Path, ...]
    """The files that a teacher, or what is stored of it, was read from."""
    inputs: dict[str, Any]
    """What the run's fingerprint is made of."""

    @property
    def fingerprint(self) -> str:
        return digests.of_value(self.inputs)


def make_job(
    config: RunConfig,
    layout: Layout,
    *,
    world: World,
    source: Path | None,
    num_threads: int | None = None,
    shelf: Shelf | None = None,
) -> Job:
    """Work a config out on this machine; writes nothing but a dataset that is not there yet.

    Args:
        num_threads: what a run to be continued began with, where the config leaves it open.
        shelf: where rows may be encoded already, and are left for the next job.

    Raises:
        UserError: the config does not fit the data, the machine, or the checkpoint to begin at.
    """
    training = config.training
    device = numerics.choose_device(training.device, local_rank=world.local_rank)
    exact = training.distributed.is_exact(device.type)
    num_microbatches = count_microbatches(training, world, exact=exact)
    numerics.make_deterministic(training.num_threads or num_threads)
    numerics.check_precision(training.precision, device)
    dataset = ensure_dataset(layout, config.data)
    dataset.check_split(config.evaluation.split)  # before there is work to lose
    spec = describe_model(config.model, dataset)
    if source is not None:
        check_source(open_checkpoint(source, tensors=False), source, config)
        if is_sharded(source):
            check_files(source, read_about(source), share=world.rank, num_shares=world.size)
    most_rows = -(-training.batch_size // num_microbatches)
    sharded = training.distributed.strategy == "fsdp" and not world.is_alone
    encoded = encode_training(dataset, spec, world, shelf)
    lesson = None
    if config.distillation is not None:
        encoded, lesson = plan_lesson(
            config.distillation,
            encoded,
            spec,
            dataset,
            layout,
            is_packing=training.packing is not None,
            is_sharded=sharded,
        )
    train_data = arrange(encoded, spec, training, num_rows=most_rows)
    validation = encode_split(dataset, "val", spec, shelf)
    model = build_model(spec, seed=derive_seed(training.distributed.seed, "weights"))
    if not sharded:  # otherwise it is moved, and compiled, when it is cut
        model = model.to(device)
    if is_packed(train_data) and isinstance(model, CausalLm):
        check_packing(model)
    if isinstance(train_data, Sequences | PackedRows | TokenRows):
        baseline = model.get_buffer("unigram_log_probs_V")
        baseline.copy_(unigram_log_probs(train_data, len(baseline)))
    if sharded:
        check_shardable(model)
    inputs = describe_inputs(
        config=config.deciding(exact=exact),
        dataset={"name": dataset.name, "version": dataset.version, "fingerprint": dataset.fingerprint},
        seed=training.distributed.seed,
        numerics={
            **numerics.describe_numerics(device),
            "determinism": "exact" if exact else f"fast, {world.size} processes",
        },
    )
    if spec.pretrained is not None:
        inputs["pretrained"] = spec.pretrained.files
    if lesson is not None:
        inputs["distillation"] = lesson.inputs
    if source is not None:
        inputs["begun_at"] = digest_of(source)
    return Job(
        config=config,
        layout=layout,
        dataset=dataset,
        spec=spec,
        device=device,
        train_data=train_data,
        validation=validation,
        plan=make_plan(config, train_data, validation, num_microbatches),
        model=made_fast(
            model,
            training.model_copy(update={"compile": False}) if sharded else training,
            packed=is_packed(train_data),
        ),
        is_exact=exact,
        is_sharded=sharded,
        source=source,
        objective=cross_entropy if lesson is None else lesson.objective(device),
        teachers=() if lesson is None else lesson.parents,
        inputs=inputs,
    )


def count_microbatches(training: Training, world: World, *, exact: bool) -> int:
    """The parts that each batch is cut into, over all processes.

    Raises:
        UserError: there are not enough of them, or of processes, for what is asked.
    """
    asked = training.gradient_accumulation_steps
    if exact and world.size & (world.size - 1):
        raise UserError(
            f"There are {world.size} processes, and training.distributed.determinism: exact sums in a binary tree, which "
            "takes 1, 2, 4, 8, ... of them; start as many, or set it to fast."
        )
    if asked is None:
        count = max(MICROBATCHES_IF_EXACT, world.size) if exact else world.size
    else:
        count = asked
    if min(count, training.batch_size) < world.size:
        raise UserError(
            f"A batch of {training.batch_size} rows in {count} microbatches leaves some of {world.size} processes with "
            "nothing to do; raise training.batch_size or training.gradient_accumulation_steps, or start fewer processes."
        )
    return min(count, training.batch_size)


def check_shardable(model: nn.Module) -> None:
    """Raises UserError when a weight cannot be cut."""
    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            raise UserError(
                f"training.distributed.strategy: fsdp cannot cut '{name}', a single number; make it [1] long."
            )
        if not weight.is_floating_point():
            raise UserError(
                f"training.distributed.strategy: fsdp cannot cut quantized weights such as '{name}'; use ddp, or set "
                "model.lora.quantization to null."
            )


def ensure_dataset(layout: Layout, data: Data) -> Dataset:
    """The prepared dataset; made now from `data.prepare` when it is not there yet.

    Raises:
        UserError: there is none, or the one that stands was made with other settings than `data.prepare` has now.
    """
    if data.category == "distillation":
        return open_dataset(layout, data.dataset, data.version, category=data.category)
    standing = read_manifest(layout.dataset_manifests("training") / f"{data.key}.json")
    if data.prepare is None or (standing is not None and not Path(data.prepare).exists()):
        return open_dataset(layout, data.dataset, data.version)
    config = load_config(Path(data.prepare), DataConfig)
    wanted = tuple(dataset for dataset in config.datasets if dataset.key == data.key)
    if standing is None and not wanted:
        there = ", ".join(dataset.key for dataset in config.datasets)
        raise UserError(f"{data.prepare} does not make dataset {data.key}. It makes: {there}")
    if standing is None:
        logger.info("dataset %s is not there yet: preparing it from %s", data.key, data.prepare)
        prepare(config.model_copy(update={"datasets": wanted}), layout)
    elif wanted and (changed := changed_settings(standing, wanted[0].resolved())):
        raise UserError(
            f"Dataset {data.key} is not what {data.prepare} describes: {'; '.join(changed)}. Give it a new version, prepare it "
            f"anew (nexa prepare --config {data.prepare} --replace), or leave data.prepare out."
        )
    return open_dataset(layout, data.dataset, data.version)


def check_source(checkpoint: Checkpoint, path: Path, config: RunConfig) -> None:
    """Raises UserError when the config differs from the checkpoint's in what decides the weights so far."""
    ours, theirs = _binding(config.deciding(exact=True)), _binding(deciding(checkpoint.config, exact=True))
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


def encode_split(dataset: Dataset, split: str, spec: ModelSpec, shelf: Shelf | None = None) -> Encoded:
    encoded = (shelf or Shelf()).encoded(dataset, split, spec)
    for note in encoded.notes:
        logger.info("%s %s: %s", dataset.key, split, note)
    return encoded


def encode_training(dataset: Dataset, spec: ModelSpec, world: World, shelf: Shelf | None = None) -> Encoded:
    """The training rows: encoded now, or mapped where that was done when they were prepared.

    What is mapped is much, and its digests are held once on each machine, by its processes together; none trains before all
    have met.
    """
    if dataset.sequence_tokens is None:
        return encode_split(dataset, "train", spec, shelf)
    rows = TokenRows.of(dataset, spec, share=world.local_rank, num_shares=world.local_size)
    logger.info("%s train: %s", dataset.key, rows.note)
    return rows


def arrange(encoded: Encoded, spec: ModelSpec, training: Training, *, num_rows: int) -> Encoded:
    """The training rows packed, and padded to few shapes, where the settings say so.

    Raises:
        UserError: these rows have no length, so that there is nothing to pack or group.
    """
    wants_lengths = [name for name in ("packing", "length_grouping") if getattr(training, name)]
    if spec.kind == "features" and wants_lengths:
        raise UserError(f"training.{wants_lengths[0]} is for rows of text; rows of features are all of one length.")
    if isinstance(encoded, TokenRows):
        if wants_lengths:
            raise UserError(
                f"training.{wants_lengths[0]} has nothing to do: the dataset's sequences are packed already, and of one "
                "length (output.sequence_tokens). Leave it out."
            )
        return replace(encoded, num_rows=num_rows) if training.compile else encoded
    if training.compile and isinstance(encoded, TextRows | Sequences):
        longest = int(encoded.token_counts_N.max(initial=1))
        encoded = replace(encoded, shapes=Shapes.few(longest=longest, most=spec.max_tokens, num_rows=num_rows))
    if training.packing is None:
        return encoded
    if not isinstance(encoded, Sequences):
        raise UserError(f"training.packing is for language models; a {spec.model['name']} reads one text a row.")
    packed = PackedRows.of(encoded, training.packing.max_tokens or spec.max_tokens)
    logger.info("%s", packed.note)
    return packed


def is_packed(data: Encoded) -> bool:
    """Whether rows that are not to see each other share a sequence."""
    return isinstance(data, PackedRows | TokenRows)


def made_fast(model: nn.Module, training: Training, *, packed: bool) -> nn.Module:
    """Raises UserError where the model has no layers to recompute."""
    transformer = getattr(model, "transformer", None)
    if training.activation_checkpointing:
        if transformer is None:
            raise UserError("training.activation_checkpointing is for transformers; this model keeps little anyway.")
        transformer.activation_checkpointing_enable({"use_reentrant": False})
    if training.compile:
        numerics.never_fall_back_to_eager()
        # The output layer, whose number of places differs from batch to batch, stays outside.
        if isinstance(model, CausalLm):
            model.prepare_compilation(packed=packed, device=model.unigram_log_probs_V.device)
        (model if transformer is None else transformer.base_model).compile(dynamic=False)
    return model


def make_plan(config: RunConfig, train_data: Encoded, validation: Encoded, num_microbatches: int) -> Plan:
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
        num_microbatches=num_microbatches,
        epochs=training.epochs,
        max_steps=training.max_steps,
        seed=training.distributed.seed,
        lengths_N=train_data.token_counts_N if training.length_grouping else None,
    )
