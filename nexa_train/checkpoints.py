"""A run's checkpoints: their names, which are kept, and which one to continue from."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nexa_core import durable
from nexa_core.config.training import Checkpoints
from nexa_models.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint
from nexa_models.sharded import SUFFIX, check_files, is_sharded, open_checkpoint, read_about
from nexa_train.distributed.group import Group
from nexa_train.order import Plan

logger = logging.getLogger(__name__)

NAME = re.compile(r"^checkpoint_(epoch|step)(\d+)\.(?:pt|sharded)$")
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
        if match := NAME.match(path.name):
            number = int(match[2])
            found[number if match[1] == "step" else (number + 1) * steps_per_epoch] = path
    return sorted(found.items())


def newest_checkpoint(folder: Path, steps_per_epoch: int) -> Checkpoint | None:
    """The newest checkpoint whose digest holds; each damaged one before it is reported. None when none is left."""
    for _, path in reversed(list_checkpoints(folder, steps_per_epoch)):
        try:
            return open_checkpoint(path)
        except DamagedCheckpoint as error:
            _report(error)
    return None


def newest_of_group(folder: Path, steps_per_epoch: int, group: Group) -> Path | None:
    """Likewise its path, the processes sharing the work: each verifies some of a folder's files."""
    for _, path in reversed(list_checkpoints(folder, steps_per_epoch)):
        damage = _find_damage(path, group)
        if damage is not None:
            _report(damage)
        if not group.begin_any(damage is not None).wait():
            return path
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


def _find_damage(path: Path, group: Group) -> DamagedCheckpoint | None:
    try:
        if is_sharded(path):
            check_files(path, read_about(path), share=group.world.rank, num_shares=group.world.size)
        else:
            load_checkpoint(path)
    except DamagedCheckpoint as error:
        return error
    return None


def _report(damage: DamagedCheckpoint) -> None:
    logger.warning("%s Falling back to the checkpoint before it.", damage)
