"""The room that a run's checkpoints take on the disk."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nexa_core import digests
from nexa_core.config.training import Optimizer, Training
from nexa_models.lora import saved_state
from nexa_models.spec import ModelSpec
from nexa_train.checkpoints import NEWEST_KEPT, is_scheduled
from nexa_train.job import Job
from nexa_train.optim import state_bytes
from nexa_train.order import Plan


@dataclass(frozen=True)
class Checkpoints:
    """Those of an undisturbed run."""

    written: int
    kept: int
    size_bytes: int
    """Of each."""
    disk_bytes: int
    """Of all that lie there at once, the one among them that is being written."""
    needed_bytes: int
    """Likewise where early stopping ends the run as soon as it may: with less room no run gets to its end."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def count_checkpoints(
    plan: Plan, training: Training, spec: ModelSpec, *, tensor_bytes: int, is_sharded: bool
) -> Checkpoints:
    """The checkpoints of a run that begins anew.

    Args:
        tensor_bytes: weights and optimizer of one; the tokenizer and all else that describes it is added.
        is_sharded: whether the result is made one file besides.
    """
    scheduled = schedule_checkpoints(plan, training)
    size_bytes = tensor_bytes + len(digests.canonical_json(spec.as_json()))
    stopping, soonest = training.early_stopping, scheduled
    if stopping is not None:  # the first epoch is always better than none
        last = (stopping.patience_epochs + 1) * plan.steps_per_epoch
        soonest = [step for step in scheduled if step <= last]

    def most_at_once(scheduled: Sequence[int]) -> int:
        kept = _count_kept(plan, training, scheduled)
        return kept + 1 if is_sharded else min(len(scheduled), kept + 1)

    return Checkpoints(
        written=len(scheduled),
        kept=_count_kept(plan, training, scheduled),
        size_bytes=size_bytes,
        disk_bytes=most_at_once(scheduled) * size_bytes,
        needed_bytes=most_at_once(soonest) * size_bytes,
    )


def room_needed(job: Job, *, folder: Path | None) -> int:
    """Bytes that have to be free for a run's checkpoints, those that lie in `folder` already left out."""
    training = job.config.training
    size_bytes = checkpoint_bytes(job.model, job.spec, training.optimizer)
    found = count_checkpoints(job.plan, training, job.spec, tensor_bytes=size_bytes, is_sharded=job.is_sharded)
    there = 0 if folder is None else _bytes_there(folder)
    return max(found.needed_bytes - there, found.size_bytes)  # one is written before another is deleted


def schedule_checkpoints(plan: Plan, training: Training) -> list[int]:
    """The steps after which an undisturbed run writes one."""
    return [step for step in range(1, plan.num_steps + 1) if is_scheduled(plan, training.checkpoints, step)]


def checkpoint_bytes(model: nn.Module, spec: ModelSpec, optimizer: Optimizer) -> int:
    """The tensors of a checkpoint of this model, whole and on any device: what is saved of it, and the optimizer's."""
    return bytes_of(saved_state(model, spec).values()) + state_bytes(model, optimizer)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _count_kept(plan: Plan, training: Training, scheduled: Sequence[int]) -> int:
    newest, best = scheduled[-NEWEST_KEPT:], training.checkpoints.save_top_k
    if best is None:
        return len({*newest, *(step for step in scheduled if plan.ends_epoch(step))})
    return min(len(scheduled), best + len(newest))


def _bytes_there(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files)
