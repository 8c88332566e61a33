"""What happens between optimizer steps: numbers to the trackers, validation, checkpoints, progress."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

from nexa_core import durable
from nexa_core.config.training import EarlyStopping
from nexa_core.cost import CostMeter
from nexa_core.errors import GateError
from nexa_core.progress import Progress
from nexa_core.trackers import Tracker
from nexa_models.checkpoint import Checkpoint, save_checkpoint
from nexa_models.predict import mean_loss
from nexa_train.checkpoints import checkpoint_name, prune_checkpoints, ranked_checkpoints
from nexa_train.job import Job
from nexa_train.loop import State, StepResult

logger = logging.getLogger(__name__)


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

    def __init__(self, meter: CostMeter):
        self._meter = meter

    def __call__(self, state: State, result: StepResult) -> None:
        self._meter.count(num_rows=result.num_rows, num_targets=result.num_targets)


class Milestones:
    """Validates and leaves a checkpoint after every epoch and the last step, and one every so many steps between."""

    def __init__(self, job: Job, folder: Path, tracker: Tracker, meter: CostMeter):
        self._job, self._folder, self._tracker, self._meter = job, folder, tracker, meter
        self._plan, self._settings = job.plan, job.config.training.checkpoints

    def __call__(self, state: State, result: StepResult) -> None:
        every = self._settings.every_steps
        if self._plan.ends_epoch(state.step) or state.step == self._plan.num_steps:
            self._validate(state)
            self._save(state)
        elif every is not None and state.step % every == 0:
            self._save(state)

    def _validate(self, state: State) -> None:
        if not len(self._job.validation):
            return
        batch_size = self._job.config.evaluation.batch_size
        loss, accuracy = mean_loss(state.model, self._job.validation, batch_size=batch_size, device=self._job.device)
        if not math.isfinite(loss):
            raise GateError(f"The validation loss is {loss} at step {state.step}; lower training.optimizer.lr.")
        state.history.append({"step": state.step, "loss": loss, "accuracy": accuracy})
        self._tracker.log(state.step, {"val_loss": loss, "val_accuracy": accuracy})
        epoch = f"epoch {math.ceil(state.step / self._plan.steps_per_epoch)}/{self._plan.epochs}"
        logger.info("%s, step %d: validation loss %.4f, accuracy %.4f", epoch, state.step, loss, accuracy)

    def _save(self, state: State) -> None:
        self._tracker.flush()  # a resumed run relies on every line up to its checkpoint
        steps_per_epoch = self._plan.steps_per_epoch
        path = self._folder / checkpoint_name(state.step, steps_per_epoch)
        save_checkpoint(path, describe_state(self._job, state))
        durable.publish(path, self._folder / "last.pt")
        prune_checkpoints(self._folder, steps_per_epoch, state.history, save_top_k=self._settings.save_top_k)
        if ranked := ranked_checkpoints(self._folder, steps_per_epoch, state.history):
            durable.publish(ranked[0][1], self._folder / "best.pt")
        self._meter.write(step=state.step)


def describe_state(job: Job, state: State) -> Checkpoint:
    """The state as a checkpoint that describes itself."""
    return Checkpoint(
        config=job.config.resolved(),
        spec=job.spec,
        dataset=job.inputs["dataset"],
        fingerprint=job.fingerprint,
        step=state.step,
        history=tuple(state.history),
        model=state.model.state_dict(),
        optimizer=state.optimizer.state_dict(),
    )


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
