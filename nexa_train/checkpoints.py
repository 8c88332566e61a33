"""A run's checkpoints: their names, which are kept, and which one to continue from."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nexa_core import durable
from nexa_core.config.training import Checkpoints
from nexa_models.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint
from nexa_train.order import Plan

logger = logging.getLogger(__name__)

NAME = re.compile(r"^checkpoint_(epoch|step)(\d+)\.pt$")
NEWEST_KEPT = 2  # one to continue from and one to fall back on


def checkpoint_name(step: int, steps_per_epoch: int) -> str:
    """`checkpoint_epoch<N>.pt` after the whole epoch N (from 0), `checkpoint_step<N>.pt` inside one."""
    epochs, rest = divmod(step, steps_per_epoch)
    return f"checkpoint_step{step}.pt" if rest else f"checkpoint_epoch{epochs - 1}.pt"


def list_checkpoints(folder: Path, steps_per_epoch: int) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint in a run's folder, oldest first."""
    found = []
    for path in folder.glob("checkpoint_*.pt"):
        if match := NAME.match(path.name):
            number = int(match[2])
            found.append((number if match[1] == "step" else (number + 1) * steps_per_epoch, path))
    return sorted(found)


def newest_checkpoint(folder: Path, steps_per_epoch: int) -> Checkpoint | None:
    """The newest checkpoint whose digest holds; each damaged one before it is reported. None when none is left."""
    for _, path in reversed(list_checkpoints(folder, steps_per_epoch)):
        try:
            return load_checkpoint(path)
        except DamagedCheckpoint as error:
            logger.warning("%s Falling back to the checkpoint before it.", error)
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
