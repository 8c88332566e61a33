"""What trial k tries, and when it is given up, is a function of the study, k and the results that it may see."""

import math
import random
from functools import partial
from typing import Any

import pytest
from optuna.pruners import BasePruner

from nexa_core.config.tune import Choice, Integer, LogUniform, Pruner, Uniform
from nexa_train.tune.mirror import Mirror
from nexa_train.tune.pruners import asha, hyperband
from nexa_train.tune.records import Ending, Study, Trial
from nexa_train.tune.samplers import Strategy, cmaes, every_point, tpe
from nexa_train.tune.samplers import random as random_strategy
from nexa_train.tune.space import Space

SPACE: Space = {
    "a": LogUniform(name="log_uniform", low=1e-4, high=1.0),
    "b": Uniform(name="uniform", low=-1.0, high=1.0),
    "c": Integer(name="integer", low=2, high=10, step=2),
    "d": Choice(name="choice", values=([1, 2], None, "x")),
}
NUMBERS: Space = {key: SPACE[key] for key in ("a", "b")}
NUM_VALIDATIONS = 9
PRUNERS = {"none": None, "asha": asha, "hyperband": hyperband}


def make_study(parallel: int) -> Study:
    return Study("s", "own", 3, parallel, "val_loss", "minimize", {}, None, {}, "", 1)


def make_mirror(strategy: Strategy, space: Space, pruner: str, parallel: int) -> Mirror:
    make: Any = PRUNERS[pruner]
    made: BasePruner | None = make and make(Pruner(name=pruner), NUM_VALIDATIONS)
    return Mirror(make_study(parallel), space, make_sampler=lambda seed: strategy(seed, space), pruner=made)


def curve(values: dict[str, Any]) -> list[float]:
    """A made-up run: the losses of its validations."""
    level = (math.log10(values["a"]) + 2) ** 2 + values["b"] ** 2 + values.get("c", 0) / 10
    return [level + 3 / (epoch + 1) for epoch in range(NUM_VALIDATIONS)]


def finish(mirror: Mirror, trial: Trial, trials: list[Trial]) -> Trial:
    """Train a trial on the made-up run."""
    losses = curve(trial.values)
    for count in range(1, len(losses) + 1):
        if mirror.gives_up(trial.number, trials, losses[:count]):
            reports = tuple(losses[:count])
            return Trial(
                trial.number, trial.values, Ending("pruned", reports[-1], reports, notes=mirror.notes(trial.number))
            )
    notes = mirror.notes(trial.number)
    return Trial(trial.number, trial.values, Ending("complete", min(losses), tuple(losses), notes=notes))


def run_alone(make: Any, num_trials: int) -> list[Trial]:
    """One worker, which is never interrupted."""
    mirror, trials = make(), []
    for number in range(num_trials):
        trials.append(Trial(number, mirror.draw(number, trials)))
        trials[number] = finish(mirror, trials[number], trials)
    return trials


def run_by_many(make: Any, num_trials: int, *, num_workers: int, draw: random.Random) -> list[Trial]:
    """Several workers that take turns at random; now and then two draw the same trial, or one dies and another takes over."""
    mirrors = [make() for _ in range(num_workers)]
    busy: dict[int, int] = {}
    left: list[int] = []
    trials: list[Trial] = []
    while any(trial.ending is None for trial in trials) or len(trials) < num_trials:
        worker = draw.randrange(num_workers)
        if worker in busy:
            number = busy.pop(worker)
            if draw.random() < 0.2:
                mirrors[worker] = make()
                left.append(number)
            else:
                trials[number] = finish(mirrors[worker], trials[number], trials)
            continue
        number = len(trials)
        if left:
            busy[worker] = left.pop(0)
        elif number < num_trials and all(
            trial.ending is not None for trial in trials[: mirrors[worker].num_needed(number)]
        ):
            slower = draw.randrange(num_workers)
            if slower not in busy:  # draws the same for nothing
                mirrors[slower].require_same(
                    Trial(number, mirrors[slower].draw(number, trials)), mirrors[worker].draw(number, trials)
                )
            trials.append(Trial(number, mirrors[worker].draw(number, trials)))
            busy[worker] = number
    return trials


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize(("strategy", "space"), [(random_strategy, SPACE), (tpe, SPACE), (cmaes, NUMBERS)])
def test_any_workers_and_any_deaths_find_the_same(strategy: Strategy, space: Space, parallel: int, pruner: str) -> None:
    make = partial(make_mirror, strategy, space, pruner, parallel)
    alone = run_alone(make, 24)
    if pruner != "none":
        assert any(trial.ending.state == "pruned" for trial in alone if trial.ending)
    for seed in range(2):
        assert run_by_many(make, 24, num_workers=3, draw=random.Random(seed)) == alone


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_later_worker_may_look_at_an_earlier_trial(pruner: str) -> None:
    make = partial(make_mirror, tpe, SPACE, pruner, 4)
    trials = run_alone(make, 24)
    for number in range(16, 24):
        assert make().draw(number, trials) == trials[number].values
    mirror = make()
    for number in (12, 3, 15, 0):
        assert finish(mirror, Trial(number, trials[number].values), trials) == trials[number]
        assert mirror.draw(number, trials) == trials[number].values


def test_a_trial_does_not_see_what_another_one_reports_while_it_runs() -> None:
    make = partial(make_mirror, tpe, SPACE, "asha", 4)
    trials = run_alone(make, 12)
    unfinished = [*trials[:9], *(Trial(trial.number, trial.values) for trial in trials[9:])]
    assert make().draw(12, unfinished) == make().draw(12, trials)


def test_the_grid_has_every_point_in_order() -> None:
    space: Space = {
        "a": LogUniform(name="log_uniform", low=0.01, high=1.0, points=3),
        "b": Uniform(name="uniform", low=0.0, high=1.0, points=2),
        "d": Choice(name="choice", values=([1], "x")),
    }
    trials = [trial.values for trial in run_alone(partial(make_mirror, every_point, space, "none", 1), 12)]
    assert [list(values.values()) for values in trials[:5]] == [
        [0.01, 0.0, [1]], [0.01, 0.0, "x"], [0.01, 1.0, [1]], [0.01, 1.0, "x"], [pytest.approx(0.1), 0.0, [1]],
    ]  # fmt: skip
    assert trials[-1] == {"a": 1.0, "b": 1.0, "d": "x"}


def test_tpe_comes_nearer_than_chance() -> None:
    best = {
        strategy: min(
            trial.ending.value
            for trial in run_alone(partial(make_mirror, strategy, NUMBERS, "none", 4), 60)
            if trial.ending
        )
        for strategy in (random_strategy, tpe)
    }
    assert best[tpe] < best[random_strategy]
