"""The search itself: a worker takes the next trial, trains it and writes down its end, until there are enough."""

import json
import logging
import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.pruners import BasePruner

from nexa_core.config import RunConfig
from nexa_core.config.documents import read_document
from nexa_core.config.load import parse_config
from nexa_core.config.tune import Tune
from nexa_core.environment import num_cores
from nexa_core.errors import GateError, Interrupted, Preempted, UserError
from nexa_core.holder import Held
from nexa_core.lookup import look_up
from nexa_core.paths import Layout
from nexa_models.scores import MORE_IS_BETTER
from nexa_train.distributed.world import read_world
from nexa_train.job import ensure_dataset
from nexa_train.shelf import Shelf
from nexa_train.tune.mirror import Mirror
from nexa_train.tune.pruners import Pruning
from nexa_train.tune.records import Direction, Ending, Study, Trial, Values, best_of
from nexa_train.tune.samplers import Grid, Strategy
from nexa_train.tune.space import Around, Space, as_json, as_overrides, check_space, config_with, default_space
from nexa_train.tune.storage import Hold, Storage, join, open_storage
from nexa_train.tune.trial import OF_VALIDATION, run_trial

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_GLANCES = 0.2
"""At whether another worker has written, which costs next to nothing where the storage can tell."""
SECONDS_BETWEEN_WORDS = 30.0


@dataclass(frozen=True)
class Tables:
    """What a user extends: see `scripts/hyperparameter_search.py`."""

    strategies: Mapping[str, str]
    pruners: Mapping[str, str]
    space: Mapping[str, Around]


@dataclass(frozen=True)
class _Seen:
    """What a worker found when it looked at the study."""

    trials: list[Trial]
    stamp: object
    """Of the record at that time."""
    number: int | None = None
    """The trial to train now; None where there is none now."""
    hold: Hold | None = None
    """None where it is a new one, and not begun yet."""
    resumes: bool = False
    """Whether it was begun before."""


class Search:
    """A study that this process takes part in."""

    def __init__(self, config_path: Path, layout: Layout, *, tables: Tables, overrides: list[str], workers: int = 1):
        """Raises UserError: the config is wrong, or the study was begun with another one."""
        self.layout, self.config_path, self.overrides = layout, config_path, overrides
        self._document = read_document(config_path)
        for override in overrides:
            self._document.override(override)
        config = parse_config(self._document, RunConfig)
        self.config = config
        settings = config.tune or Tune()
        _check(config, settings)
        space = settings.space or default_space(config, tables.space)
        check_space(self._document, space)
        strategy: Strategy = look_up(tables.strategies, settings.strategy, what="strategy")
        pruner = _make_pruner(config, settings, tables)
        points = strategy(0, space)
        self.num_points = points.num_points if isinstance(points, Grid) else None
        dataset = ensure_dataset(layout, config.data)  # before several trials make it
        self.space, self.max_failed_in_a_row = space, settings.max_failed_in_a_row
        study = describe_study(
            config, settings, space, dataset=dataset.fingerprint, num_threads=_share_of_threads(config, workers)
        )
        self.storage: Storage = open_storage(settings, layout, study.name)
        self.study = join(self.storage, study)
        self.mirror = Mirror(self.study, space, make_sampler=lambda seed: strategy(seed, space), pruner=pruner)
        self._shelf = Shelf()
        if self.mirror.learns and workers > self.study.parallel:
            logger.warning("tune.parallel is %d: of %d workers no more have work at once", self.study.parallel, workers)

    @property
    def folder(self) -> Path:
        """Where the study's own files lie."""
        return self.layout.artifacts / "tune" / self.study.name

    def num_trials(self, max_trials: int) -> int:
        return max_trials if self.num_points is None else min(max_trials, self.num_points)

    def trials(self) -> list[Trial]:
        with self.storage.locked():
            return self.storage.read_trials()

    def fail(self, number: int) -> None:
        """Record a trial as failed that ends its workers before they can say so.

        Raises:
            UserError: there is no such trial, it has ended, or a worker trains it.
        """
        until = time.monotonic() + self.storage.seconds_to_tell
        if self.storage.seconds_to_tell:
            logger.info("it takes up to %.0f s to tell whether a worker trains it", self.storage.seconds_to_tell)
        while not self._fail(number):
            if time.monotonic() >= until:
                raise UserError(f"--fail {number}: a worker trains it; end that first.")
            time.sleep(self.storage.seconds_between_looks)

    def _fail(self, number: int) -> bool:
        """False where a worker trains it, as far as can be told now."""
        with self.storage.locked():
            trials = self.storage.read_trials()
            if number >= len(trials) or trials[number].ending is not None:
                unfinished = _unfinished(trials) or "none"
                raise UserError(f"--fail {number}: expected a trial that was begun and has not ended: {unfinished}")
            if (hold := self.storage.take_over(number)) is None:
                return False
            self.storage.end_trial(number, Ending("failed", None, reason="given up by --fail"))
            hold.release()
        return True

    def work(self, max_trials: int) -> None:
        """Train trials until the study has so many that have ended, by whichever worker.

        Raises:
            GateError: too many failed in a row.
            Preempted: the process was told to end, and has saved.
        """
        said, patience = 0.0, SECONDS_BETWEEN_GLANCES
        while True:
            seen = self._next(self.num_trials(max_trials))
            if seen.number is None:
                if all(trial.ending is not None for trial in seen.trials):
                    return
                if time.monotonic() - said >= SECONDS_BETWEEN_WORDS:
                    said = time.monotonic()
                    logger.info("waiting for trials of other workers: %s", _unfinished(seen.trials))
                is_news = self._wait_for_news(seen.stamp, patience)
                patience = SECONDS_BETWEEN_GLANCES if is_news else min(2 * patience, self.storage.seconds_between_looks)
                continue
            number, patience = seen.number, SECONDS_BETWEEN_GLANCES
            assert seen.hold is not None
            try:
                self._run(seen.trials[number], seen.trials, resumes=seen.resumes)
            except Held as error:
                logger.info("%s It is tried again.", error)
                time.sleep(SECONDS_BETWEEN_GLANCES)
            except Preempted as error:
                how = "interrupted" if isinstance(error, Interrupted) else "told to end"
                raise type(error)(f"{how}: trial {number} is saved; the same command goes on there") from None
            finally:
                seen.hold.release()

    def _wait_for_news(self, stamp: object, seconds: float) -> bool:
        """Sleep until another worker has written, or so long; a worker that is gone is found by looking only."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SECONDS_BETWEEN_GLANCES))
            if self.storage.stamp() != stamp:
                return True
        return False

    def _next(self, num_trials: int) -> _Seen:
        """The trial to train now, held.

        A new one is drawn outside the storage's lock, for some strategies take seconds: what it hangs on has ended and does
        not change. Where another worker has begun it meanwhile, it was drawn for nothing and the next one is looked for.
        """
        while True:
            seen = self._look(num_trials)
            number = seen.number
            if number is None or seen.hold is not None:
                return seen
            values = self.mirror.draw(number, seen.trials)
            with self.storage.locked():
                there = self.storage.read_trials()
                if number < len(there):
                    self.mirror.require_same(there[number], values)
                    continue
                hold = self.storage.begin_trial(number, values)
            if hold is not None:  # None: another worker was faster, while a server was away
                return replace(seen, trials=[*seen.trials, Trial(number, values)], hold=hold)

    def _look(self, num_trials: int) -> _Seen:
        """What there is to do: a trial that was left, then held; or a new one, or nothing now."""
        with self.storage.locked():
            trials, stamp = self.storage.read_trials(), self.storage.stamp()
            self._require_few_failures(trials)
            for trial in trials[:num_trials]:
                if trial.ending is None and (hold := self.storage.take_over(trial.number)) is not None:
                    logger.info(
                        "trial %d was begun by a worker that is gone; it goes on (if it is what ends its workers, as one that "
                        "fills the memory: nexa tune ... --fail %d)",
                        trial.number,
                        trial.number,
                    )
                    return _Seen(trials, stamp, trial.number, hold, resumes=True)
        number = len(trials)
        if number >= num_trials:
            return _Seen(trials[:num_trials], stamp)
        if any(trial.ending is None for trial in trials[: self.mirror.num_needed(number)]):
            return _Seen(trials, stamp)
        return _Seen(trials, stamp, number)

    def _run(self, trial: Trial, trials: list[Trial], *, resumes: bool) -> None:
        logger.info("trial %d begins: %s", trial.number, values_text(trial.values))
        ending = self.train(trial, trials, resumes=resumes)
        with self.storage.locked():
            self.storage.end_trial(trial.number, ending)
            ended = self.storage.read_trials()
        logger.info("%s", ending_text(self.study, replace(trial, ending=ending), best_of(self.study, ended)))

    def train(self, trial: Trial, trials: list[Trial], *, resumes: bool) -> Ending:
        """How a trial comes out.

        Args:
            trials: those that it may see, at least.
            resumes: whether an earlier worker may have begun it.
        """
        ending = run_trial(
            self.config_of(trial),
            layout=self.layout,
            metric=self.study.metric,
            shelf=self._shelf,
            gives_up=lambda reports: self.mirror.gives_up(trial.number, trials, reports),
            resumes=resumes,
        )
        # Also of a run that had come to its end before, and so reported nothing now.
        self.mirror.gives_up(trial.number, trials, ending.reports)
        return replace(ending, notes=self.mirror.notes(trial.number))

    def config_of(self, trial: Trial) -> RunConfig:
        """The config that a trial's run has."""
        name = {"name": f"{self.config.name}_t{trial.number:03}", "experiment": self.study.name}
        return config_with(self._document, {**self.values_of(trial), **name})

    def values_of(self, trial: Trial) -> Values:
        """What a trial changes of the config; with the number of threads, where the config leaves that open."""
        threads = {"training.num_threads": self.study.num_threads}
        return {**trial.values, **({} if self._threads_are_given() else threads)}

    def train_command(self, trial: Trial) -> str:
        """The `train` command whose run has a trial's values, and so its score."""
        own = (override for override in self.overrides if not override.startswith("tune."))
        settings = [*own, *as_overrides(self.values_of(trial))]
        return " ".join(
            [f"nexa train --config {self.config_path}", *(f"--override {shlex.quote(each)}" for each in settings)]
        )

    def _threads_are_given(self) -> bool:
        return (self._document.value.get("training") or {}).get("num_threads") is not None

    def _require_few_failures(self, trials: list[Trial]) -> None:
        row = 0
        for trial in trials:
            failed = trial.ending is not None and trial.ending.state == "failed"
            row = row + 1 if failed else 0
            if row == self.max_failed_in_a_row:
                assert trial.ending is not None
                raise GateError(
                    f"{row} trials failed one after another, the last one, {trial.number}, with: {trial.ending.reason}\n"
                    f"The study stays in {self.storage.place}. Mend the config or the space, and begin another one "
                    "(--override tune.study=<name>), or raise tune.max_failed_in_a_row."
                )


def describe_study(config: RunConfig, settings: Tune, space: Space, *, dataset: str, num_threads: int) -> Study:
    """What the study is."""
    runs = config.deciding(exact=True)
    runs = {key: value for key, value in runs.items() if key not in ("name", "experiment", "tracking", "cost")}
    return Study(
        name=settings.study or f"{config.experiment}_tune",
        strategy=settings.strategy,
        seed=settings.seed,
        parallel=settings.parallel,
        metric=settings.metric,
        direction=settings.direction or _direction(settings.metric),
        space=as_json(space),
        pruner=None if settings.pruner is None else settings.pruner.resolved(),
        config=_without(runs, space),
        dataset=dataset,
        num_threads=num_threads,
    )


def ending_text(study: Study, trial: Trial, best: Trial | None) -> str:
    """The line on a trial that has ended."""
    ending = trial.ending
    assert ending is not None
    outcome = (ending.reason or "").rstrip(".") if ending.value is None else f"{study.metric} {ending.value_text}"
    told = "" if best is None or best.ending is None else f"; best trial {best.number}: {best.ending.value_text}"
    return f"trial {trial.number} {ending.state}: {outcome}, {ending.seconds:.1f} s, {values_text(trial.values)}{told}"


def values_text(values: Values) -> str:
    """Short, for people: `training.optimizer.lr=0.000316, ...`."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def _make_pruner(config: RunConfig, settings: Tune, tables: Tables) -> BasePruner | None:
    if settings.pruner is None:
        return None
    make: Pruning = look_up(tables.pruners, settings.pruner.name, what="pruner")
    return make(settings.pruner, config.training.epochs)


def _check(config: RunConfig, settings: Tune) -> None:
    """Raises UserError where the search cannot be had, or its metric must not choose."""
    metric = settings.metric
    if settings.strategy == "grid" and not settings.space:
        raise UserError(
            "A grid needs `tune.space`, with `points` for each range: how many values between low and high."
        )
    if not read_world(os.environ).is_alone:
        raise UserError("A search is no job for a launcher of processes: start `nexa tune` by itself, with --workers.")
    if metric not in OF_VALIDATION and config.evaluation.split == "test":
        known = [*OF_VALIDATION, *MORE_IS_BETTER]
        hint = "" if metric in MORE_IS_BETTER else f" Known are {', '.join(known)}."
        raise UserError(
            f"tune.metric: '{metric}' would be measured on the test split, which must not choose settings: take val_loss or "
            f"val_accuracy, or set evaluation.split: val.{hint}"
        )
    if settings.direction is None and metric not in OF_VALIDATION and metric not in MORE_IS_BETTER:
        raise UserError(f"tune.metric: say in tune.direction whether less or more of '{metric}' is better.")
    if settings.pruner is not None and metric not in OF_VALIDATION:
        raise UserError(f"tune.pruner looks at each validation; tune.metric has to be {' or '.join(OF_VALIDATION)}.")
    if settings.pruner is not None and config.training.distributed.world_size > 1:
        raise UserError("tune.pruner is for trials of one process; training.distributed.world_size is above 1.")


def _direction(metric: str) -> Direction:
    more = metric == "val_accuracy" or MORE_IS_BETTER.get(metric, False)
    return "maximize" if more else "minimize"


def _share_of_threads(config: RunConfig, workers: int) -> int:
    return config.training.num_threads or max(1, num_cores() // workers)


def _without(runs: dict[str, Any], space: Space) -> dict[str, Any]:
    """A config without the keys that are searched."""
    rest = json.loads(json.dumps(runs))
    for key in space:
        *above, last = key.split(".")
        node = rest
        with suppress(KeyError, TypeError):
            for part in above:
                node = node[part]
            del node[last]
    return rest


def _unfinished(trials: list[Trial]) -> str:
    return ", ".join(str(trial.number) for trial in trials if trial.ending is None)
