"""A run's checkpoints: their names, which are kept, and which one to continue from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nexa_core import durable
from nexa_core.config.training import Checkpoints
from nexa_core.errors import UserError
from nexa_core.runs import CHECKPOINT_NAME
from nexa_models.checkpoint import Checkpoint
from nexa_models.sharded import SUFFIX, check_files, digest_of, is_sharded, open_checkpoint, read_about
from nexa_train.distributed.group import Group
from nexa_train.order import Plan

logger = logging.getLogger(__name__)

NEWEST_KEPT = 2  # one to continue from and one to fall back on


def checkpoint_name(step: int, steps_per_epoch: int, *, sharded: bool = False) -> str:
    """`checkpoint_epoch<N>.pt` after the whole epoch N (from 0), `checkpoint_step<N>.pt` inside one."""
    epochs, rest = divmod(step, steps_per_epoch)
    suffix = SUFFIX if sharded else ".pt"
    return f"checkpoint_step{step}{suffix}" if rest else f"checkpoint_epoch{epochs - 1}{suffix}"


def list_checkpoints(folder: Path, steps_per_epoch: int) -> list[tuple[int, Path]]:
    """(step, path) of every step with a checkpoint in a run's folder, oldest first; of two forms, the folder."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("checkpoint_*")):
        if match := CHECKPOINT_NAME.match(path.name):
            number = int(match[2])
            found[number if match[1] == "step" else (number + 1) * steps_per_epoch] = path
    return sorted(found.items())


def newest_checkpoint(
    folder: Path, steps_per_epoch: int, group: Group, *, in_parts: bool = False
) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint whose digest holds, and its path; None when none is left.

    The main process chooses, and all have to find the same content there. Each damaged one is reported and passed over.

    Args:
        in_parts: of a folder the processes share the verification, and its tensors are not read.

    Raises:
        NodeError: on every process alike: one cannot read what the main one chose, or finds something else there.
    """
    names = group.from_main([path.name for _, path in reversed(list_checkpoints(folder, steps_per_epoch))])
    for path in (folder / name for name in names):
        found = _look_at(path, group, in_parts=in_parts)
        chosen = group.from_main(found.digest)
        group.require_of_all("" if chosen in ("", found.digest) else _say_difference(path, found, chosen))
        if found.damage:
            logger.warning("%s Falling back to the checkpoint before it.", found.damage)
        if not group.begin_any(bool(found.damage)).wait():
            assert found.checkpoint is not None
            return path, found.checkpoint
    return None


def ranked_checkpoints(
    folder: Path, steps_per_epoch: int, history: Sequence[dict[str, float]]
) -> list[tuple[int, Path]]:
    """(step, path) of the validated checkpoints there are, the lowest loss first, of equals the earliest.

    A run that began at another run's checkpoint has that run's validations in its history, but not its files.
    """
    losses = {int(entry["step"]): entry["loss"] for entry in history}
    found = [(step, path) for step, path in list_checkpoints(folder, steps_per_epoch) if step in losses]
    return sorted(found, key=lambda each: (losses[each[0]], each[0]))


def is_scheduled(plan: Plan, settings: Checkpoints, step: int) -> bool:
    """Whether an undisturbed run leaves a checkpoint of that step."""
    every = settings.every_steps
    return plan.ends_epoch(step) or step == plan.num_steps or (every is not None and step % every == 0)


def prune_checkpoints(
    folder: Path, plan: Plan, settings: Checkpoints, history: Sequence[dict[str, float]], *, finished: bool = False
) -> None:
    """Delete what the settings do not keep; the newest two always stay, and so does the best.

    One that is not scheduled, which a process told to end has left, takes no other's place, and goes when the run is
    finished: so a run that was stopped keeps what it would have kept otherwise.
    """
    found = list_checkpoints(folder, plan.steps_per_epoch)
    scheduled = [path for step, path in found if is_scheduled(plan, settings, step)]
    ranked = ranked_checkpoints(folder, plan.steps_per_epoch, history)
    keep = {*scheduled[-NEWEST_KEPT:], *(path for _, path in ranked[: settings.save_top_k or None])}
    if not finished:
        keep |= {path for _, path in found[-NEWEST_KEPT:]}
    for step, path in found:
        in_epoch = step % plan.steps_per_epoch != 0
        if path not in keep and (in_epoch or settings.save_top_k is not None):
            durable.remove(path)
            durable.remove(path.with_suffix(".pt"))


@dataclass(frozen=True)
class _Found:
    """What one process finds at a path."""

    checkpoint: Checkpoint | None = None
    digest: str = ""
    """As it was written with the checkpoint; empty where that cannot be read."""
    damage: str = ""


def _look_at(path: Path, group: Group, *, in_parts: bool) -> _Found:
    digest = ""
    try:
        if in_parts and is_sharded(path):
            about, digest = read_about(path), digest_of(path)
            check_files(path, about, share=group.world.rank, num_shares=group.world.size)
            return _Found(open_checkpoint(path, tensors=False), digest)
        checkpoint = open_checkpoint(path)
        return _Found(checkpoint, digest_of(path) if is_sharded(path) else _recorded_digest(path))
    except UserError as error:  # damaged, or not there
        return _Found(None, digest, str(error))


def _recorded_digest(path: Path) -> str:
    """The digest in a verified checkpoint file; its tensors are mapped and not read."""
    return str(torch.load(path, mmap=True, map_location="cpu", weights_only=True)["digest"])


def _say_difference(path: Path, found: _Found, chosen: str) -> str:
    what = found.damage or f"{path} has the digest {found.digest[:12]} here and {chosen[:12]} on rank 0."
    return (
        f"{what} Rank 0 continues at its own {path.name}, and all have to: let every node share one laboratory folder "
        "(NEXA_ROOT), or look at that node's disk, mount and memory; then start again."
    )
