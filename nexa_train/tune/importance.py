"""How much of the difference between trials each searched key makes."""

from random import Random

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from nexa_train.tune.records import Study, Trial
from nexa_train.tune.space import Space, as_parameters, distributions

TRIALS_A_KEY = 10
"""Fewer complete trials for each key than that, and what is measured is mostly chance."""
MOST_TRIALS = 500
"""So that the report of a long search does not wait for the forest."""


def importance_of(study: Study, space: Space, trials: list[Trial]) -> dict[str, float] | None:
    """The share of the variance between complete trials that each key explains, summing to 1, the largest first.

    None where there are too few trials, or all came out alike. Source: Hutter, Hoos and Leyton-Brown 2014 (fANOVA).
    """
    complete = [trial for trial in trials if trial.ending is not None and trial.ending.state == "complete"]
    values = [trial.ending.value for trial in complete if trial.ending is not None]
    if len(complete) < trials_needed(space) or len(set(values)) < 2:
        return None
    seen = optuna.create_study(direction=study.direction)
    kinds = distributions(space)
    # Drawn, not every other one: in a grid's order a key may take the same value each time.
    measured = complete if len(complete) <= MOST_TRIALS else Random(0).sample(complete, MOST_TRIALS)
    for trial in measured:
        assert trial.ending is not None
        parameters = as_parameters(space, trial.values)
        seen.add_trial(
            create_trial(state=TrialState.COMPLETE, params=parameters, distributions=kinds, value=trial.ending.value)
        )
    return get_param_importances(seen, evaluator=FanovaImportanceEvaluator(seed=0))


def trials_needed(space: Space) -> int:
    return TRIALS_A_KEY * len(space)
