"""What looks on after each optimizer step: numbers to the trackers, progress, the rate, and whether to go on."""

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nexa_core.config.training import EarlyStopping
from nexa_core.cost import CostMeter
from nexa_core.errors import GateError
from nexa_core.progress import Progress
from nexa_core.trackers import Tracker
from nexa_train.loop import State, StepResult

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PACES = 1.0


class Tracking:
    """Logs loss, gradient norm and learning rate; stops a run in which one is no number any more.

    A step's numbers are read one step later, when a GPU has computed them, so that no step waits for them.
    """

    def __init__(self, tracker: Tracker, *, every_steps: int, progress: Progress):
        self._tracker, self._every, self._progress = tracker, every_steps, progress
        self._unread: tuple[int, float, tuple[str, ...], Reading] | None = None

    def __call__(self, state: State, result: StepResult) -> None:
        reading = Reading(result.loss, result.gradient_norm, *(each for part in result.parts.values() for each in part))
        self.settle()
        self._unread = (state.step, result.lr, tuple(result.parts), reading)

    def settle(self) -> None:
        """Read the last step; before a checkpoint, which relies on every line up to it, and holds numbers only."""
        if self._unread is None:
            return
        (step, lr, names, reading), self._unread = self._unread, None
        loss, gradient_norm, *sums = reading.numbers()
        for said, value in (("The loss became", loss), ("The gradient's norm became", gradient_norm)):
            if not math.isfinite(value):
                raise GateError(
                    f"{said} {value} at step {step} (learning rate {lr:g}); no checkpoint was written "
                    "since. Lower training.optimizer.lr, set training.max_gradient_norm, or look at the data."
                )
        if step % self._every == 0:
            measured = zip(names, sums[::2], sums[1::2], strict=True)
            parts = {name: total / count for name, total, count in measured if count}
            self._tracker.log(step, {"loss": loss, **parts, "gradient_norm": gradient_norm, "lr": lr})
            self._progress.update(step, f"loss {loss:.4f}")


class Reading:
    """Numbers on their way to the host: what is queued on a GPU after them is not waited for."""

    def __init__(self, *tensors: Tensor):
        self._numbers = torch.stack([tensor.double() for tensor in tensors])
        self._arrived: torch.cuda.Event | None = None
        if self._numbers.is_cuda:
            pinned = torch.empty(len(tensors), dtype=torch.float64, pin_memory=True)
            self._numbers = pinned.copy_(self._numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def numbers(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


class Pace:
    """Tells the trackers, once a second, how fast it went since it last did."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._began = time.perf_counter()
        self._num_steps = self._num_rows = self._num_tokens = 0

    def __call__(self, state: State, result: StepResult) -> None:
        self._num_steps += 1
        self._num_rows += result.num_rows
        self._num_tokens += result.num_tokens
        now = time.perf_counter()
        seconds = now - self._began
        if seconds < SECONDS_BETWEEN_PACES:
            return
        rates = {"steps_per_second": self._num_steps / seconds, "rows_per_second": self._num_rows / seconds}
        if self._num_tokens:
            rates["useful_tokens_per_second"] = self._num_tokens / seconds
        self._tracker.pace(state.step, rates)
        self._began = now
        self._num_steps = self._num_rows = self._num_tokens = 0


class Throughput:
    """What an attempt has learned from, for its cost, and how fast: the first step, which may compile, left out."""

    def __init__(self, meter: CostMeter, *, flops_per_token: float | None, peak_flops: float | None):
        self._meter, self._flops_per_token, self._peak_flops = meter, flops_per_token, peak_flops
        self._began: float | None = None
        self._num_steps = self._num_rows = self._num_tokens = 0
        self._padding = 0.0

    def __call__(self, state: State, result: StepResult) -> None:
        self._meter.count(num_rows=result.num_rows, num_targets=result.num_targets, num_tokens=result.num_tokens)
        if self._began is None:
            float(result.loss)  # a GPU's first step ends here, so that the others are timed alone
            self._began = time.perf_counter()
            return
        self._num_steps += 1
        self._num_rows += result.num_rows
        self._num_tokens += result.num_tokens
        self._padding += result.padding_share

    def pause(self, seconds: float) -> None:
        """Leave out time that was no training."""
        if self._began is not None:
            self._began += seconds

    def report(self) -> dict[str, float]:
        """Rates over this attempt's steps but the first; empty where it made no more."""
        if self._began is None or not self._num_steps:
            return {}
        seconds = time.perf_counter() - self._began
        rates = {"steps_per_second": self._num_steps / seconds, "rows_per_second": self._num_rows / seconds}
        if self._num_tokens:
            rates["useful_tokens_per_second"] = self._num_tokens / seconds
            rates["padding_share"] = self._padding / self._num_steps
            if self._flops_per_token is not None and self._peak_flops is not None:
                done = self._flops_per_token * self._num_tokens
                rates["model_flops_utilisation"] = done / seconds / self._peak_flops
        return rates


def rates_as_text(rates: dict[str, float]) -> str:
    """The line of what `Throughput.report` says."""
    if not rates:
        return "throughput: too few steps to tell"
    parts = [f"{rates['steps_per_second']:.2f} steps/s", f"{rates['rows_per_second']:,.0f} rows/s"]
    if "useful_tokens_per_second" in rates:
        parts[1:] = [
            f"{rates['useful_tokens_per_second']:,.0f} useful tokens/s",
            f"padding {rates['padding_share']:.1%}",
        ]
    if "model_flops_utilisation" in rates:
        parts.append(f"model FLOPs utilisation {rates['model_flops_utilisation']:.1%}")
    return f"throughput: {', '.join(parts)}"


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


def never(state: State) -> bool:
    """Goes on to the end."""
    return False


def any_of(*reasons: Callable[[State], bool]) -> Callable[[State], bool]:
    """Whether there is any reason to stop."""
    return lambda state: any(stops(state) for stops in reasons)
