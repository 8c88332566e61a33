"""Optimizers, and the learning rate as a pure function of the step."""

import math
from typing import Any

from torch import nn, optim

from nexa_core.config import training as settings


def build_optimizer(model: nn.Module, chosen: settings.Optimizer) -> optim.Optimizer:
    """The optimizer over all weights that learn, in its fused form: one kernel for a whole update.

    Only AdamW tells matrices (decayed) from vectors (not).
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    match chosen:
        case settings.Adam():
            return optim.Adam(weights, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True)
        case settings.AdamW():
            groups = [
                {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": chosen.weight_decay},
                {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
            return optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True)
        case settings.Sgd():
            return optim.SGD(
                weights,
                lr=chosen.lr,
                momentum=chosen.momentum,
                nesterov=chosen.nesterov,
                weight_decay=chosen.weight_decay,
                fused=not any(hasattr(weight, "device_mesh") for weight in weights),  # torch has none for shards
            )


def state_bytes(model: nn.Module, chosen: settings.Optimizer) -> int:
    """Bytes of all that the optimizer of these weights keeps once it has taken a step."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    match chosen:
        case settings.Adam() | settings.AdamW():  # two moments, and the number of steps in float32
            return sum(2 * weight.nbytes + 4 for weight in weights)
        case settings.Sgd():
            return sum(weight.nbytes for weight in weights) if chosen.momentum else 0


def load_state(optimizer: optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Give the optimizer what another one kept of each weight, by number; its settings stay those it was built with."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def learning_rate(step: int, *, schedule: settings.Schedule, full: float, num_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `num_steps`: warm-up first, then the schedule's shape."""
    if step < schedule.warmup_steps:
        return full * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, num_steps - schedule.warmup_steps)
    match schedule:
        case settings.ConstantSchedule():
            return full
        case settings.LinearSchedule():
            return full * (1 - (1 - schedule.final_fraction) * done)
        case settings.CosineSchedule():
            return full * (schedule.final_fraction + (1 - schedule.final_fraction) * (1 + math.cos(math.pi * done)) / 2)
        case settings.StepSchedule():
            return full * schedule.factor ** ((step - schedule.warmup_steps) // schedule.every_steps)
