"""How long a run takes: a few of its steps timed here, or its operations held against what a device can do."""

import itertools
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nexa_core.config import RunConfig
from nexa_models.causal_lm import CausalLm, check_packing
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model
from nexa_ops.forecast.rehearsal import rehearse
from nexa_train.distributed.world import World
from nexa_train.feed import Feed
from nexa_train.job import is_packed, made_fast
from nexa_train.lesson import Lesson
from nexa_train.loop import State, StepResult
from nexa_train.objectives import cross_entropy
from nexa_train.optim import build_optimizer
from nexa_train.order import Plan

TRIAL_SECONDS = 4.0
MOST_TRIAL_STEPS = 6
MOST_TRIAL_FLOPS = 3e11
"""Of a step that is tried out on a processor: some seconds of one core."""
UTILISATION = 0.35
"""Share of a GPU's peak that training is assumed to reach."""
PRODUCT_SIZE = 1024
FORWARD_SHARE = 1 / 3
"""Of a step's operations; the backward pass is the rest."""


@dataclass(frozen=True)
class Pace:
    seconds_per_step: float
    seconds: float
    """Of all steps, validations and the final scores."""
    basis: str
    """What that was told from."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return f"about {duration_text(self.seconds)}, {self.seconds_per_step:.3g} s a step ({self.basis})"


def time_steps(
    spec: ModelSpec,
    config: RunConfig,
    *,
    feed: Feed,
    world: World,
    is_exact: bool,
    device: torch.device,
    flops_per_step: float,
    lesson: Lesson | None,
) -> tuple[float, str]:
    """Seconds of a step here, and how that is known: from a trial of a few, or where a step is long, from a product.

    The trial's model is thrown away; weights are as long to compute with wherever they come from.
    """
    if device.type == "cpu" and flops_per_step > MOST_TRIAL_FLOPS:
        speed = _product_speed(device)
        return flops_per_step / speed, f"from {speed / 1e9:,.0f} GFLOP/s, the speed of a matrix product here"
    training = config.training.model_copy(update={"compile": False})
    model = build_model(spec)
    packed = is_packed(feed.data)
    if packed and isinstance(model, CausalLm):
        check_packing(model)  # as training does; it takes weights
    model = made_fast(model.to(device), training, packed=packed)
    state = State(model, build_optimizer(model, training.optimizer))
    ends: list[float] = [time.perf_counter()]

    def note(state: State, result: StepResult) -> None:
        float(result.loss)  # a GPU is done with the step only then
        ends.append(time.perf_counter())

    def is_enough(state: State) -> bool:
        return len(ends) > MOST_TRIAL_STEPS or ends[-1] - ends[0] > TRIAL_SECONDS

    objective = cross_entropy if lesson is None else lesson.imagined(device, writes=True)
    rehearse(
        state, feed, config, world=world, is_exact=is_exact, should_stop=is_enough, hooks=[note], objective=objective
    )
    timed = [end - begin for begin, end in itertools.pairwise(ends)]
    timed = timed[1:] or timed  # the first one warms up
    plain = ", not compiled" if config.training.compile else ""
    return sum(timed) / len(
        timed
    ), f"from {len(timed)} {'step' if len(timed) == 1 else 'steps'} timed on this machine{plain}"


def from_peak(gpu: str, peak: float, *, flops_per_step: float, world: World) -> tuple[float, str]:
    """Likewise from the operations and a GPU's peak."""
    return (
        flops_per_step / world.size / (peak * UTILISATION),
        f"assuming {UTILISATION:.0%} of the {peak / 1e12:,.0f} TFLOP/s of {world.size} x {gpu}",
    )


def make_pace(
    known: tuple[float, str], plan: Plan, *, slots_per_step: float, slots_looked_at: float, world: World
) -> Pace:
    """The whole run's time.

    Args:
        slots_looked_at: tokens (or rows) that go through the model once, in all validations and for the final scores.
    """
    seconds_per_step, basis = known
    looking = FORWARD_SHARE * seconds_per_step * slots_looked_at / slots_per_step
    if not world.is_alone:
        basis += f"; {world.size} processes, each with a device or cores of its own"
    return Pace(seconds_per_step, plan.num_steps * seconds_per_step + looking, basis)


def duration_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _product_speed(device: torch.device) -> float:
    """Operations per second of a product of two square matrices."""
    left = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device)
    left @ left
    began = time.perf_counter()
    repeats = 5
    for _ in range(repeats):
        left @ left
    return repeats * 2 * PRODUCT_SIZE**3 / (time.perf_counter() - began)
