"""Pruners: each makes the Optuna pruner that says after a validation whether a trial goes on."""

from collections.abc import Callable

from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner

from nexa_core.config.tune import Pruner

Pruning = Callable[[Pruner, int], BasePruner]
"""Of the settings and the number of validations of a whole trial."""


def asha(settings: Pruner, num_validations: int) -> BasePruner:
    """Asynchronous successive halving. Source: Li et al. 2020, arXiv:1810.05934."""
    return SuccessiveHalvingPruner(min_resource=settings.min_validations, reduction_factor=settings.reduction_factor)


def hyperband(settings: Pruner, num_validations: int) -> BasePruner:
    """Several such, the first looks of which come at different times. Source: Li et al. 2018, arXiv:1603.06560."""
    pruner = HyperbandPruner(
        min_resource=settings.min_validations,
        max_resource=max(num_validations, settings.min_validations),
        reduction_factor=settings.reduction_factor,
    )
    # Otherwise it does so at its first look, and samplers that ask before would be told another bracket than after.
    pruner._try_initialization(None)  # type: ignore[arg-type]
    return pruner
