"""The training loop: the one place where weights change."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn, optim

from nexa_models.encoding import Encoded
from nexa_models.numerics import seed_generators
from nexa_models.predict import summed_loss
from nexa_train.order import Plan, derive_seed


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


Hook = Callable[[State, StepResult], None]


def fit(
    state: State,
    data: Encoded,
    plan: Plan,
    *,
    lr: Callable[[int], float],
    max_gradient_norm: float | None,
    autocast: Callable[[], torch.autocast],
    device: torch.device,
    should_stop: Callable[[State], bool],
    hooks: list[Hook],
) -> None:
    """Train from `state.step` to the plan's end, or until `should_stop`; each hook is called after each step.

    The loss of a step is the sum over all its microbatches divided by the number of targets in all of them, so
    neither the cut into microbatches nor rows of unequal length change what is learned.
    """
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    while state.step < plan.num_steps and not should_stop(state):
        state.model.train()
        microbatches = [data.batch(rows) for rows in plan.microbatches(state.step)]
        num_targets = sum(batch.num_targets for batch in microbatches)
        total_loss = torch.zeros((), device=device)
        for index, batch in enumerate(microbatches):
            # Dropout is a function of where the run is, not of what came before: resuming needs no generator state.
            seed_generators(derive_seed(plan.seed, "dropout", state.step, index), device)
            batch = batch.to(device)
            with autocast():
                logits = state.model(**batch.inputs)
            loss = summed_loss(logits, batch.targets) / max(num_targets, 1)
            loss.backward()
            total_loss += loss.detach()
        gradient_norm = nn.utils.clip_grad_norm_(weights, max_gradient_norm or float("inf"))
        rate = lr(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        num_rows = sum(len(batch.targets) for batch in microbatches)
        for hook in hooks:
            hook(state, StepResult(total_loss, gradient_norm, rate, num_rows, num_targets))
