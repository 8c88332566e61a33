"""Strategies: each makes the Optuna sampler that draws one trial's values.

A strategy is called anew for each trial with a seed of the trial's own, so a sampler keeps nothing from one to the next
but what it leaves in the study. One with `needs_history = False` looks at no other trial, and none is waited for.
"""

from collections.abc import Callable
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from nexa_train.tune.space import Space, as_parameters, grid

Strategy = Callable[[int, Space], BaseSampler]
"""Of the trial's seed and the space."""


class Random(RandomSampler):
    needs_history = False


class Grid(BaseSampler):
    """Trial k is the grid's k-th point."""

    needs_history = False

    def __init__(self, space: Space):
        self._points = [as_parameters(space, values) for values in grid(space)]
        self.num_points = len(self._points)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._points[trial.number][param_name]


def random(seed: int, space: Space) -> BaseSampler:
    """Each trial by itself."""
    return Random(seed=seed)


def tpe(seed: int, space: Space) -> BaseSampler:
    """Where good trials are dense and bad ones are not. Source: Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127."""
    return TPESampler(seed=seed)


def cmaes(seed: int, space: Space) -> BaseSampler:
    """A normal distribution that moves towards what was good; for numbers. Source: Hansen 2016, arXiv:1604.00772."""
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def every_point(seed: int, space: Space) -> BaseSampler:
    """Every combination, in order."""
    return Grid(space)
