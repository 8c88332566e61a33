"""Validation and checkpoints: after every epoch, after the last step, and as often between as the settings say."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn, optim

from nexa_core import durable
from nexa_core.cost import CostMeter
from nexa_core.errors import GateError
from nexa_core.trackers import Tracker
from nexa_models.checkpoint import Checkpoint, save_checkpoint
from nexa_models.lora import saved_state
from nexa_train.checkpoints import checkpoint_name, is_scheduled, prune_checkpoints, ranked_checkpoints
from nexa_train.distributed.group import Group
from nexa_train.job import Job
from nexa_train.loop import State, StepResult
from nexa_train.saving import Copies, Writer
from nexa_train.validation import validate

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5


class Milestones:
    """All processes validate. The main one writes; of a sharded model, each its own part.

    Args:
        pause: takes the seconds that a validation or a copy held the training up for.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        *,
        group: Group,
        tracker: Tracker,
        meter: CostMeter,
        writer: Writer,
        pause: Callable[[float], None],
    ):
        self._job, self._folder, self._group = job, folder, group
        self._tracker, self._meter, self._writer = tracker, meter, writer
        self._pause = pause
        self._plan, self._settings = job.plan, job.config.training.checkpoints
        self._keeper: Keeper = _make_shards() if job.is_sharded else WholeState(group, check=writer.check)
        self._saved_step: int | None = None

    def __call__(self, state: State, result: StepResult) -> None:
        self._writer.check()
        began = time.perf_counter()
        if self._plan.ends_epoch(state.step) or state.step == self._plan.num_steps:
            self._validate(state)
        if is_scheduled(self._plan, self._settings, state.step):
            self.save(state)
            self._pause(time.perf_counter() - began)

    def save(self, state: State) -> None:
        """Copy the state and begin to write it; does nothing where the step is saved already."""
        if self._saved_step == state.step:
            return
        self._saved_step = state.step
        self._writer.wait()  # the copies go where the last ones lay
        described = describe_state(self._job, state)
        write = self._keeper.copy(described, state.model, state.optimizer)
        if write is not None:
            self._writer.begin(partial(self._write, described.step, described.history, write))

    def _validate(self, state: State) -> None:
        job = self._job
        if not len(job.validation):
            return
        found = validate(
            state.model,
            job.validation,
            batch_size=job.config.evaluation.batch_size,
            group=self._group,
            device=job.device,
            compiled=job.config.training.compile,
        )
        if not math.isfinite(found.loss):
            raise GateError(f"The validation loss is {found.loss} at step {state.step}; lower training.optimizer.lr.")
        state.history.append({"step": state.step, "loss": found.loss, "accuracy": found.accuracy})
        self._tracker.log(state.step, found.as_numbers())
        epoch = f"epoch {math.ceil(state.step / self._plan.steps_per_epoch)}/{self._plan.epochs}"
        logger.info("%s, step %d: validation %s", epoch, state.step, found.as_text())

    def _write(self, step: int, history: Sequence[dict[str, float]], write: Callable[[Path], None]) -> None:
        """In the writer's thread."""
        self._tracker.flush()  # a resumed run relies on every line up to its checkpoint
        steps_per_epoch = self._plan.steps_per_epoch
        path = self._folder / checkpoint_name(step, steps_per_epoch, sharded=self._job.is_sharded)
        write(path)
        if not self._group.world.is_main:
            return
        durable.publish(path, self._folder / f"last{path.suffix}")
        prune_checkpoints(self._folder, self._plan, self._settings, history)
        if ranked := ranked_checkpoints(self._folder, steps_per_epoch, history):
            best = ranked[0][1]
            durable.publish(best, self._folder / f"best{best.suffix}")
        self._meter.write(step=step)


class Keeper(Protocol):
    def copy(
        self, checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer
    ) -> Callable[[Path], None] | None:
        """Begin to copy the state; returns what writes the copy, where this process has anything to write."""


class WholeState:
    """Has the main process write all of it to one file.

    On a processor the optimizer's part, which is most of it, is copied beside the next step: nothing but the optimizer
    changes it, and that waits for the copy.

    Args:
        check: raises what writing ended in, so that nobody waits for a copy that never comes.
    """

    def __init__(self, group: Group, *, check: Callable[[], None]):
        self._group, self._check = group, check
        self._weights, self._moments = Copies(), Copies(alone=True)
        self._are_copied = threading.Event()
        self._waiting: optim.Optimizer | None = None

    def copy(
        self, checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer
    ) -> Callable[[Path], None] | None:
        if not self._group.world.is_main:
            return None
        weights = self._weights.take(checkpoint.model)
        if any(weight.is_cuda for weight in model.parameters()):  # there it is the GPU that copies
            moments = self._moments.take(checkpoint.optimizer)

            def take_moments() -> Any:
                return moments
        else:
            self._have_wait(optimizer)
            self._are_copied.clear()
            take_moments = partial(self._take_beside, checkpoint.optimizer)

        def write(path: Path) -> None:
            kept = take_moments()
            for copies in (self._weights, self._moments):
                copies.wait()
            save_checkpoint(path, replace(checkpoint, model=weights, optimizer=kept))

        return write

    def _take_beside(self, state: dict[str, Any]) -> Any:
        try:
            return self._moments.take(state)
        finally:
            self._are_copied.set()

    def _have_wait(self, optimizer: optim.Optimizer) -> None:
        if self._waiting is not optimizer:
            self._waiting = optimizer
            optimizer.register_step_pre_hook(self._wait_for_copy)

    def _wait_for_copy(self, *_: Any) -> None:
        while not self._are_copied.wait(SECONDS_BETWEEN_LOOKS):
            self._check()


def _make_shards() -> Keeper:
    from nexa_train.distributed.shards import Shards  # takes seconds to load

    return Shards()


def describe_state(job: Job, state: State) -> Checkpoint:
    """The state as a checkpoint that describes itself; its tensors are those in use."""
    return Checkpoint(
        config=job.config.deciding(exact=job.is_exact),
        spec=job.spec,
        dataset=job.inputs["dataset"],
        fingerprint=job.fingerprint,
        step=state.step,
        history=tuple(dict(entry) for entry in state.history),
        model=saved_state(state.model, job.spec),
        optimizer=state.optimizer.state_dict(),
    )
