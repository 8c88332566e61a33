"""What is written down of a search: what it is, and each trial's values and end."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from optuna.trial import TrialState

from nexa_core.errors import UserError

End = Literal["complete", "pruned", "failed"]
Direction = Literal["minimize", "maximize"]
Values = dict[str, Any]
"""Of each searched key."""
FORMAT = 1
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
"""What Optuna calls each end."""


@dataclass(frozen=True)
class Study:
    """All that decides a search's trials; every command that goes on with it has to ask for the same."""

    name: str
    strategy: str
    seed: int
    parallel: int
    metric: str
    direction: Direction
    space: dict[str, dict[str, Any]]
    pruner: dict[str, Any] | None
    config: dict[str, Any]
    """Of the runs, but for what is searched."""
    dataset: str
    """The fingerprint of the prepared rows."""
    num_threads: int
    """Of each operation of every trial: another number could round otherwise."""
    format: int = FORMAT

    @property
    def is_maximized(self) -> bool:
        return self.direction == "maximize"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Study":
        if value.get("format") != FORMAT:
            raise UserError(
                f"Study '{value.get('name')}' was written by another version; give this one another tune.study."
            )
        return cls(**value)


@dataclass(frozen=True)
class Ending:
    """How a trial came out."""

    state: End
    value: float | None
    """What trials are compared by; of a pruned trial at its last validation, of a failed one None."""
    reports: tuple[float, ...] = ()
    """The metric after each validation."""
    reason: str = ""
    """Why it failed, or was given up."""
    run_id: str = ""
    run_dir: str = ""
    """Below the laboratory; empty where the trial failed before it had a folder."""
    step: int | None = None
    """The last optimizer step of a pruned trial."""
    notes: dict[str, float] = field(default_factory=dict)
    """What the pruner noted down of the trial, for its decisions on later ones."""
    seconds: float = 0.0
    """Of the attempt that came to the end."""
    code: str = ""
    """The digest of the code that ran."""
    low: float | None = None
    high: float | None = None
    """Of `value` its 95% interval, of the trial by itself; None where that is unknown or without bound."""

    @property
    def interval_text(self) -> str:
        if self.low is None and self.high is None:
            return "interval unknown"
        return " to ".join("no bound" if end is None else f"{end:.4g}" for end in (self.low, self.high))

    @property
    def value_text(self) -> str:
        """`0.0431275 (0.0402 to 0.0461)`; nothing where there is no value."""
        return "" if self.value is None else f"{self.value:.6g} ({self.interval_text})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Ending":
        return cls(**{**value, "reports": tuple(value["reports"])})


@dataclass(frozen=True)
class Trial:
    number: int
    values: Values
    ending: Ending | None = None
    """None while it has not come to its end."""


def best_of(study: Study, trials: list[Trial]) -> Trial | None:
    """The complete trial with the best value; of equal ones the first."""
    complete = [trial for trial in trials if trial.ending is not None and trial.ending.state == "complete"]
    return min(complete, key=lambda trial: _rank(study, trial), default=None)


def ranked(study: Study, trials: list[Trial]) -> list[Trial]:
    """Complete trials, best first, then pruned ones, then those that failed, then the unfinished."""
    order = {"complete": 0, "pruned": 1, "failed": 2}
    return sorted(
        trials, key=lambda trial: (3 if trial.ending is None else order[trial.ending.state], *_rank(study, trial))
    )


def _rank(study: Study, trial: Trial) -> tuple[float, int]:
    value = None if trial.ending is None else trial.ending.value
    if value is None:
        return 0.0, trial.number
    return (-value if study.is_maximized else value), trial.number
