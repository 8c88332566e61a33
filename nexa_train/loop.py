"""The training loop: the one place where weights change."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn, optim

from nexa_models.encoding import Batch
from nexa_models.numerics import seed_generators
from nexa_train.distributed.strategies import Learn, Strategy
from nexa_train.feed import Feed, StepData
from nexa_train.objectives import Moment, Objective, cross_entropy
from nexa_train.order import derive_seed


@dataclass
class State:
    """Everything that changes while training; what a checkpoint holds. All else is a function of the step."""

    model: nn.Module
    optimizer: optim.Optimizer
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class StepResult:
    """One optimizer step; tensors stay on the device, so that only who reads them waits for it."""

    loss: Tensor
    """Mean over the step's targets, in nats."""
    gradient_norm: Tensor
    """Global L2 norm before clipping."""
    lr: float
    num_rows: int
    num_targets: int
    num_tokens: int
    """Read by the model, padding left out."""
    padding_share: float
    """Of the tokens that this process computed; 0 where rows have none."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """What is measured beside the loss: (2,) of each its sum over some targets, and how many those are."""


Hook = Callable[[State, StepResult], None]


def fit(
    state: State,
    feed: Feed,
    strategy: Strategy,
    *,
    lr: Callable[[int], float],
    max_gradient_norm: float | None,
    autocast: Callable[[], contextlib.AbstractContextManager[object]],
    should_stop: Callable[[State], bool],
    hooks: list[Hook],
    notify: Callable[[int], None],
    objective: Objective = cross_entropy,
) -> None:
    """Train from `state.step` to the plan's end, or until `should_stop`; each hook is called after each step, `notify` before.

    The loss of a step is the sum over all its microbatches divided by the number of targets in all of them, so
    neither the cut into microbatches nor rows of unequal length change what is learned.
    """
    state.model.train()  # all its modules: a loaded one may be in evaluation below a root that is not
    with contextlib.closing(feed.steps(state.step)) as steps:
        while not should_stop(state) and (step := next(steps, None)) is not None:
            notify(state.step)
            if not state.model.training:  # a walk over all its modules
                state.model.train()
            numbers = strategy.run(
                step, _learn(step, feed, autocast, objective), num_numbers=1 + 2 * len(objective.parts)
            )
            gradient_norm = strategy.clip(max_gradient_norm)
            rate = lr(state.step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            _forget_gradients(state.optimizer)
            state.step += 1
            num_slots = sum(batch.num_slots for batch in step.batches.values())
            num_read = sum(batch.num_tokens for batch in step.batches.values())
            result = StepResult(
                loss=numbers[0],
                gradient_norm=gradient_norm,
                lr=rate,
                num_rows=step.num_rows,
                num_targets=step.num_targets,
                num_tokens=step.num_tokens,
                padding_share=1 - num_read / num_slots if num_slots else 0.0,
                parts=dict(zip(objective.parts, numbers[1:].view(len(objective.parts), 2), strict=True)),
            )
            for hook in hooks:
                hook(state, result)


def _forget_gradients(optimizer: optim.Optimizer) -> None:
    """As `zero_grad`, without the hooks and profiler's marks that cost a small model more than its backward pass."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = None


def _learn(
    step: StepData, feed: Feed, autocast: Callable[[], contextlib.AbstractContextManager[object]], objective: Objective
) -> Learn:
    def learn(model: nn.Module, batch: Batch, index: int, *, weight: float = 1.0) -> Tensor:
        # Dropout is a function of where the run is, not of what came before: resuming needs no generator state.
        seed_generators(derive_seed(feed.plan.seed, "dropout", step.step, index), feed.device)
        batch = batch.to(feed.device)
        with autocast():
            summed = objective(model, batch, Moment(feed.plan.seed, step.step, index))
        loss = summed[0] / max(step.num_targets, 1)
        (loss * weight).backward()
        return torch.cat([loss.detach()[None], summed[1:].detach()])

    return learn
