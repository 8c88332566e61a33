"""What happens between optimizer steps: numbers to the trackers, validation, checkpoints, progress."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

from nexa_core import durable
from nexa_core.config.training import Checkpoints, EarlyStopping
from nexa_core.cost import CostMeter
from nexa_core.errors import GateError
from nexa_core.progress import Progress
from nexa_core.trackers import Tracker
from nexa_models.checkpoint import Checkpoint, save_checkpoint
from nexa_models.encoding import Encoded
from nexa_models.predict import mean_loss
from nexa_train.checkpoints import best_step, checkpoint_name, prune_checkpoints
from nexa_train.loop import State, StepResult
from nexa_train.order import Plan

logger = logging.getLogger(__name__)

MakeCheckpoint = Callable[[State], Checkpoint]


class Tracking:
    """Logs loss, gradient norm and learning rate; stops a run whose loss is no number any more."""

    def __init__(self, tracker: Tracker, *, every_steps: int, progress: Progress):
        self._tracker, self._every, self._progress = tracker, every_steps, progress

    def __call__(self, state: State, result: StepResult) -> None:
        if state.step % self._every:
            return
        loss = float(result.loss)
        if not math.isfinite(loss):
            raise GateError(
                f"The loss became {loss} at step {state.step} (learning rate {result.lr:g}); no checkpoint was written "
                "since. Lower training.optimizer.lr, set training.max_gradient_norm, or look at the data."
            )
        values = {"loss": loss, "gradient_norm": float(result.gradient_norm), "lr": result.lr}
        self._tracker.log(state.step, values)
        self._progress.update(state.step, f"loss {loss:.4f}")


class Counting:
    """Counts what an attempt has learned from, for its cost."""

    def __init__(self) -> None:
        self.num_rows = self.num_targets = 0

    def __call__(self, state: State, result: StepResult) -> None:
        self.num_rows += result.num_rows
        self.num_targets += result.num_targets


class Milestones:
    """Validates and leaves a checkpoint after every epoch and the last step, and one every so many steps between."""

    def __init__(
        self,
        folder: Path,
        settings: Checkpoints,
        plan: Plan,
        make_checkpoint: MakeCheckpoint,
        *,
        validation: Encoded,
        batch_size: int,
        device: torch.device,
        tracker: Tracker,
        cost: CostMeter,
        counting: Counting,
    ):
        self._folder, self._settings, self._plan, self._make_checkpoint = folder, settings, plan, make_checkpoint
        self._validation, self._batch_size, self._device = validation, batch_size, device
        self._tracker, self._cost, self._counting = tracker, cost, counting

    def __call__(self, state: State, result: StepResult) -> None:
        every = self._settings.every_steps
        if self._plan.ends_epoch(state.step) or state.step == self._plan.num_steps:
            self._validate(state)
            self._save(state)
        elif every is not None and state.step % every == 0:
            self._save(state)

    def _validate(self, state: State) -> None:
        if not len(self._validation):
            return
        loss, accuracy = mean_loss(state.model, self._validation, batch_size=self._batch_size, device=self._device)
        if not math.isfinite(loss):
            raise GateError(f"The validation loss is {loss} at step {state.step}; lower training.optimizer.lr.")
        state.history.append({"step": state.step, "loss": loss, "accuracy": accuracy})
        self._tracker.log(state.step, {"val_loss": loss, "val_accuracy": accuracy})
        epoch = math.ceil(state.step / self._plan.steps_per_epoch)
        logger.info(
            "epoch %d/%d, step %d: validation loss %.4f, accuracy %.4f",
            epoch,
            self._plan.epochs,
            state.step,
            loss,
            accuracy,
        )

    def _save(self, state: State) -> None:
        self._tracker.flush()  # a resumed run relies on every line up to its checkpoint
        path = self._folder / checkpoint_name(state.step, self._plan.steps_per_epoch)
        save_checkpoint(path, self._make_checkpoint(state))
        durable.publish(path, self._folder / "last.pt")
        prune_checkpoints(self._folder, self._plan.steps_per_epoch, state.history, save_top_k=self._settings.save_top_k)
        if state.history:
            best = self._folder / checkpoint_name(best_step(state.history), self._plan.steps_per_epoch)
            durable.publish(best, self._folder / "best.pt")
        self._cost.write(step=state.step, num_rows=self._counting.num_rows, num_targets=self._counting.num_targets)


def early_stop(settings: EarlyStopping | None) -> Callable[[State], bool]:
    """Whether the validation losses so far say to stop: a function of the history alone, so resuming changes nothing."""

    def should_stop(state: State) -> bool:
        if settings is None:
            return False
        lowest, num_worse = math.inf, 0
        for entry in state.history:
            improved = entry["loss"] < lowest - settings.min_improvement
            lowest, num_worse = (entry["loss"], 0) if improved else (lowest, num_worse + 1)
        return num_worse >= settings.patience_epochs

    return should_stop
