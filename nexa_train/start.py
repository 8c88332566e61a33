"""The beginning of a run: the folder it is written to, and the state it starts or continues from."""

import logging
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from nexa_core import digests, durable
from nexa_core.config import RunConfig
from nexa_core.config.run import deciding
from nexa_core.environment import describe_environment
from nexa_core.errors import UserError
from nexa_core.lineage import read_lineage, write_lineage
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, create_run, list_runs
from nexa_models.checkpoint import Checkpoint
from nexa_models.lora import load_state
from nexa_models.sharded import SUFFIX, is_sharded, open_checkpoint
from nexa_models.table import load_pretrained
from nexa_train import optim
from nexa_train.checkpoints import checkpoint_name, newest_checkpoint
from nexa_train.distributed.group import Group
from nexa_train.job import Job, is_packed
from nexa_train.loop import State

logger = logging.getLogger(__name__)

SEEN_SECONDS = 30.0
"""How long a network's file system may take to show one node what another wrote."""


class ChangedInputs(UserError):
    """A run cannot be continued exactly."""


def find_run_of(
    config: RunConfig, layout: Layout, *, finished: bool, exact: bool, run_id: str | None = None
) -> RunFolder | None:
    """The newest run of exactly this config that is, or is not, finished: that has its manifest.

    Settings that do not decide a run's bytes may differ; where it is exact, the number of processes is one of those.

    Args:
        run_id: the only run that will do.

    Raises:
        UserError: that run is of another config.
    """
    wanted = config.deciding(exact=exact)
    for run in reversed(list_runs(layout, experiment=config.experiment)):
        if run_id is not None and run.run_id != run_id:
            continue
        has_manifest = (layout.run_manifests / f"{run.run_id}.json").exists()
        if has_manifest == finished and run.lineage.exists():
            if _deciding(run, exact=exact) == wanted:
                return run
            if run_id is not None:
                raise UserError(f"Run {run_id} began with other settings than these; it goes on with its own only.")
    return None


def begin_run(job: Job, *, now: datetime) -> RunFolder:
    """A new run folder with its config, environment and, last, the lineage that makes it resumable."""
    config, layout = job.config, job.layout
    run = create_run(layout, experiment=config.experiment, name=config.name, now=now)
    durable.write_text(run.config, yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))
    durable.write_json(run.environment, describe_environment(numerics=job.inputs["numerics"]))
    parents = [layout.relative(path) for path in (job.dataset.manifest_path, *job.teachers)]
    if job.source is not None:
        # The run gets a copy, so that it can be continued from there even if it is killed before its own first one.
        step, sharded = open_checkpoint(job.source, tensors=False).step, is_sharded(job.source)
        durable.copy(job.source, run.checkpoints / checkpoint_name(step, job.plan.steps_per_epoch, sharded=sharded))
        parents.append(layout.relative(job.source))
    write_lineage(layout, run, kind="training", inputs=job.inputs, outputs=[], parents=parents)
    logger.info("run %s begins in %s", run.run_id, run.path)
    return run


def rejoin(run: RunFolder, job: Job) -> Job:
    """The job as `run` began it; refuses when its inputs are no longer the same: the result would be neither's.

    Raises:
        ChangedInputs: naming what changed.
    """
    lineage = read_lineage(run)
    assert lineage is not None
    begun: dict[str, Any] = lineage["inputs"]
    changed = [key for key in sorted(job.inputs) if begun.get(key) != job.inputs[key]]
    if changed:
        last = run.checkpoints / f"last{SUFFIX if job.is_sharded else '.pt'}"
        raise ChangedInputs(
            f"Run {run.run_id} cannot be continued exactly: {', '.join(changed)} changed since it began. Put that back, "
            f"start a new run without --resume, or begin one at its checkpoint: --resume-from {last}"
        )
    return replace(job, inputs=begun)


def begun_threads(run: RunFolder) -> int | None:
    """The threads of each operation that the run began with: another number would round differently."""
    lineage = read_lineage(run)
    return None if lineage is None else lineage["inputs"]["numerics"].get("num_threads")


def shared_facts(job: Job, run: RunFolder | None) -> dict[str, str]:
    """What all processes have to find alike beside the settings and the dataset, by name.

    Args:
        run: the one to continue.
    """
    facts = {"run": "a new one" if run is None else run.run_id}
    if job.is_exact:
        facts["threads"] = str(job.inputs["numerics"]["num_threads"])
    if "begun_at" in job.inputs:
        facts["source"] = job.inputs["begun_at"]
    if "distillation" in job.inputs:
        facts["teacher"] = digests.of_value(job.inputs["distillation"])
    return facts | {f"pretrained {name}": digest for name, digest in job.inputs.get("pretrained", {}).items()}


def require_shared(run: RunFolder, group: Group, *, wait_seconds: float = SEEN_SECONDS) -> None:
    """Raises NodeError on every process when one does not see what the main one writes to the run's folder."""
    if group.world.is_alone:
        return
    sign = run.path / group.from_main(f".seen_{uuid4().hex}{durable.TEMPORARY_SUFFIX}")
    if group.world.is_main:
        durable.write_text(sign, "")
    group.wait_for_all()
    group.require_of_all(
        ""
        if _appears(sign, wait_seconds)
        else f"does not see what rank 0 writes to {run.path}. Let every node share one laboratory folder (NEXA_ROOT)."
    )
    if group.world.is_main:
        durable.remove(sign)


def restore_state(job: Job, run: RunFolder, *, group: Group) -> State:
    """The state of the run's newest verified checkpoint, after clearing away what a killed writer left; or a fresh one.

    Raises:
        NodeError: on every process alike: they do not share the run's folder, or do not find the same checkpoint in it.
    """
    if group.world.is_main:
        durable.remove_partial_files(run.path)
    group.wait_for_all()
    require_shared(run, group)
    found = newest_checkpoint(run.checkpoints, job.plan.steps_per_epoch, group, in_parts=job.is_sharded)
    if job.is_sharded:
        return _restore_shards(job, found, group)
    state = State(job.model, optim.build_optimizer(job.model, job.config.training.optimizer))
    if found is None:
        load_pretrained(state.model, job.spec)
    else:
        _, checkpoint = found
        load_state(state.model, job.spec, checkpoint.model)
        optim.load_state(state.optimizer, checkpoint.optimizer["state"])
        state.step, state.history = checkpoint.step, list(checkpoint.history)
        logger.info("continuing at step %d", state.step)
    return state


def _appears(path: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)
    return True


def _restore_shards(job: Job, found: tuple[Path, Checkpoint] | None, group: Group) -> State:
    """Likewise with the model cut into shards: what is whole goes into it before, and parts go into its parts."""
    from nexa_train.distributed.sharding import shard  # takes seconds to load
    from nexa_train.distributed.shards import load_whole_optimizer, read_shards

    path, checkpoint = (None, None) if found is None else found
    in_parts = path is not None and is_sharded(path)
    if checkpoint is None or (in_parts and job.spec.lora is not None):  # a checkpoint of adapters has no base
        load_pretrained(job.model, job.spec)
    if checkpoint is not None and not in_parts:
        load_state(job.model, job.spec, checkpoint.model)
    shard(job.model, job.config.training, world=group.world, device=job.device, packed=is_packed(job.train_data))
    state = State(job.model, optim.build_optimizer(job.model, job.config.training.optimizer))
    if path is None or checkpoint is None:
        return state
    if in_parts:
        read_shards(path, state.model, state.optimizer, job.spec, group)
    else:
        load_whole_optimizer(state.optimizer, checkpoint.optimizer)
    state.step, state.history = checkpoint.step, list(checkpoint.history)
    logger.info("continuing at step %d", state.step)
    return state


def _deciding(run: RunFolder, *, exact: bool) -> Any:
    """The run's own config likewise; None where it is of an older form."""
    try:
        return deciding(yaml.safe_load(run.config.read_text(encoding="utf-8")), exact=exact)
    except KeyError:
        return None
