"""The search as one trial may see it, as an Optuna study in memory.

Trial k sees the results of the trials before k - parallel + 1, and of those between only the values they try, whatever else
is known by then. So its own values, and when it is given up, are a function of the study, k and those results: the same with
any number of workers, after any kill.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from nexa_core.errors import UserError
from nexa_train.tune.records import STATES, Study, Trial, Values
from nexa_train.tune.samplers import Grid
from nexa_train.tune.space import Space, as_parameters, as_values, distributions

BEGINNING = datetime(2000, 1, 1)  # no decision depends on a clock


def seed_of(study_seed: int, number: int) -> int:
    """The seed of a trial's values."""
    return int.from_bytes(hashlib.sha256(f"{study_seed}/{number}".encode()).digest()[:4], "big")


class Memory(InMemoryStorage):
    def put_back(self, trial_id: int, trial: FrozenTrial) -> None:
        """Undo all that was done to a trial since it was this one."""
        with self._lock:
            self._set_trial(trial_id, trial)


class Mirror:
    """Goes from one trial to a later one by what is new; to an earlier one by starting over."""

    def __init__(
        self, study: Study, space: Space, *, make_sampler: Callable[[int], BaseSampler], pruner: BasePruner | None
    ):
        self._study, self._space, self._make_sampler, self._pruner = study, space, make_sampler, pruner
        self._distributions = distributions(space)
        sampler = make_sampler(0)
        self._needs_history = getattr(sampler, "needs_history", True)
        self._leaves_nothing = isinstance(sampler, RandomSampler | TPESampler | Grid)
        """Whether a sampler keeps no state in the study, so that a trial that was drawn before need not be drawn again."""
        self._num_reports, self._is_given_up = 0, False
        _quiet()
        self._start_over()

    def num_needed(self, number: int) -> int:
        """How many trials, from the first on, have to have ended before this one can begin."""
        return max(0, number - self._study.parallel + 1) if self.learns else 0

    @property
    def learns(self) -> bool:
        """Whether what a trial does hangs on the results of others."""
        return self._needs_history or self._pruner is not None

    def draw(self, number: int, trials: Sequence[Trial]) -> Values:
        """The values of a trial.

        Args:
            trials: those before it at least.
        """
        self._show(number, trials)
        return self._draw(number)

    def gives_up(self, number: int, trials: Sequence[Trial], reports: Sequence[float]) -> bool:
        """Whether a trial stops after the last of its validations so far."""
        if self._pruner is None or not reports:
            return False
        if self._at != number:
            self._show(number, trials)
            self._enter(trials[number])
        trial_id = self._ids[number]
        for step in range(self._num_reports + 1, len(reports) + 1):
            self._memory.set_trial_intermediate_value(trial_id, step, reports[step - 1])
            self._is_given_up = self._pruner.prune(self._optuna, self._memory.get_trial(trial_id))
        self._num_reports = max(self._num_reports, len(reports))
        return self._is_given_up

    def notes(self, number: int) -> dict[str, float]:
        """What the pruner noted down of the trial that reported last."""
        if self._pruner is None or self._at != number:
            return {}
        attributes = self._memory.get_trial(self._ids[number]).system_attrs
        return {key: float(value) for key, value in attributes.items() if isinstance(value, float | int)}

    def _start_over(self) -> None:
        self._memory = Memory()
        self._optuna = optuna.create_study(
            storage=self._memory,
            study_name=self._study.name,
            direction=self._study.direction,
            sampler=self._make_sampler(0),
            pruner=self._pruner or optuna.pruners.NopPruner(),
        )
        self._ids: list[int] = []
        self._num_shown = 0
        """Trials, from the first on, whose results are seen."""
        self._at: int | None = None
        """The newest trial, while it reports."""
        self._untouched: FrozenTrial | None = None
        self._num_reports, self._is_given_up = 0, False

    def _show(self, number: int, trials: Sequence[Trial]) -> None:
        """Come to the trials before `number`, with the results that it may see."""
        self._leave()
        if number < len(self._ids):
            self._start_over()
        while len(self._ids) < number:
            each = len(self._ids)
            self._tell(self.num_needed(each), trials)
            self._enter(trials[each])
        self._tell(self.num_needed(number), trials)

    def _leave(self) -> None:
        """What the newest trial reported is not seen by the next ones before it is told."""
        if self._at is not None and self._untouched is not None:
            self._memory.put_back(self._ids[self._at], self._untouched)
        self._at = None

    def _enter(self, trial: Trial) -> None:
        """Add a trial that was drawn before."""
        if self._leaves_nothing:
            self._ids.append(self._memory.create_new_trial(self._optuna._study_id, self._frozen(trial)))
            self._arrive(trial.number)
        else:
            self.require_same(trial, self._draw(trial.number))

    def require_same(self, trial: Trial, drawn: Values) -> None:
        """Raises UserError where a trial has other values than are drawn for it here."""
        if drawn != trial.values:
            raise UserError(
                f"Strategy '{self._study.strategy}' draws {drawn} for trial {trial.number}, and drew {trial.values} before: "
                "it is no function of its seed and the study, or another version of it. Begin another study."
            )

    def _draw(self, number: int) -> Values:
        self._optuna.sampler = self._make_sampler(seed_of(self._study.seed, number))
        trial = self._optuna.ask(self._distributions)
        assert trial.number == number
        self._ids.append(trial._trial_id)
        self._arrive(number)
        return as_values(self._space, trial.params)

    def _arrive(self, number: int) -> None:
        self._at, self._untouched = number, self._memory.get_trial(self._ids[number])
        self._num_reports, self._is_given_up = 0, False

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return FrozenTrial(
            number=trial.number,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=BEGINNING,
            datetime_complete=None,
            params=as_parameters(self._space, trial.values),
            distributions=self._distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    def _tell(self, num_shown: int, trials: Sequence[Trial]) -> None:
        self._leave()
        for trial in trials[self._num_shown : num_shown]:
            ending, trial_id = trial.ending, self._ids[trial.number]
            assert ending is not None, f"trial {trial.number} has not ended"
            for step, value in enumerate(ending.reports, start=1):
                self._memory.set_trial_intermediate_value(trial_id, step, value)
            for key, note in ending.notes.items():
                self._memory.set_trial_system_attr(trial_id, key, note)
            values = None if ending.value is None else [ending.value]
            self._memory.set_trial_state_values(trial_id, STATES[ending.state], values)
        self._num_shown = max(self._num_shown, num_shown)


def _quiet() -> None:
    """Optuna's own messages say nothing that the search does not say better."""
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
