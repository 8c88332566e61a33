"""Steps of a run taken by one process by itself, through the very loop that trains."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nexa_core.config import RunConfig
from nexa_models.numerics import autocast
from nexa_train.distributed.group import Group
from nexa_train.distributed.strategies import make_strategy
from nexa_train.distributed.world import World
from nexa_train.feed import Feed
from nexa_train.loop import Hook, State, fit
from nexa_train.objectives import Objective


class _Unanswered(Group):
    """A group whose other processes are not there."""

    def swap(self, values: Tensor, partner: int) -> Tensor:
        return torch.empty_like(values)


def rehearse(
    state: State,
    feed: Feed,
    config: RunConfig,
    *,
    world: World,
    is_exact: bool,
    should_stop: Callable[[State], bool],
    hooks: list[Hook],
    objective: Objective,
) -> None:
    """Take the feed's steps as process 0 of `world` would, but for what it has to hear from the others.

    Where the library sums the gradients, they stay this process's own; where weights are shards, it has them whole.
    """
    training = config.training
    fit(
        state,
        feed,
        make_strategy(
            training.distributed, state.model, _Unanswered(world) if is_exact else Group(World()), is_exact=is_exact
        ),
        lr=lambda step: training.optimizer.lr,
        max_gradient_norm=training.max_gradient_norm,
        autocast=partial(autocast, training.precision, feed.device),
        should_stop=should_stop,
        hooks=hooks,
        notify=lambda step: None,
        objective=objective,
    )
