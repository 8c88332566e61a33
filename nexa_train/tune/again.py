"""One trial of a study trained by itself, and held against what the study has of it."""

from dataclasses import dataclass
from typing import Any

from nexa_core.errors import GateError, UserError
from nexa_train.tune.records import Ending, Trial
from nexa_train.tune.search import Search, ending_text


@dataclass(frozen=True)
class Again:
    """A trial of now beside the recorded one."""

    trial: Trial
    recorded: Ending | None
    """None where the study has no end of it."""
    text: str
    command: str

    @property
    def ending(self) -> Ending:
        assert self.trial.ending is not None
        return self.trial.ending

    @property
    def differing(self) -> list[str]:
        """What is another than in the study."""
        if self.recorded is None:
            return []
        names = ("state", "value", "reports", "reason", "step")
        return [name for name in names if getattr(self.recorded, name) != getattr(self.ending, name)]

    def as_json(self) -> dict[str, Any]:
        recorded = None if self.recorded is None else self.recorded.as_json()
        values = {"number": self.trial.number, "values": self.trial.values, **self.ending.as_json()}
        return {**values, "recorded": recorded, "differing": self.differing, "command": self.command}

    def as_text(self) -> str:
        if self.recorded is None:
            verdict = "the study has no end of it to hold this against"
        elif self.differing:
            verdict = f"NOT what the study has: {', '.join(self.differing)}"
        else:
            verdict = f"the same as in the study, to the last bit ({len(self.ending.reports)} validations)"
        return "\n".join([self.text, verdict, f"run {self.ending.run_dir}"])

    def require_same(self) -> None:
        """Raises GateError where it came out otherwise."""
        for name in self.differing:
            was, is_now = getattr(self.recorded, name), getattr(self.ending, name)
            raise GateError(f"Trial {self.trial.number}: {name} is {is_now}; the study has {was}.")


def train_again(search: Search, number: int) -> Again:
    """Train trial `number` as a new run; the study's record stays as it is.

    Raises:
        UserError: its values are not known without earlier trials, which have not ended.
    """
    trials = search.trials()
    needed = search.mirror.num_needed(number)
    missing = [each for each in range(needed) if each >= len(trials) or trials[each].ending is None]
    if missing:
        raise UserError(
            f"Trial {number} is drawn from the results of trials 0 to {needed - 1}, and {len(missing)} of them have not ended "
            f"yet, the first being {missing[0]}. Search on first: --max-trials {needed}"
        )
    for each in range(len(trials), number + 1):
        trials.append(Trial(each, search.mirror.draw(each, trials)))
    drawn = search.mirror.draw(number, trials)
    if drawn != trials[number].values:
        raise GateError(f"Trial {number}: drawn is {drawn}; the study has {trials[number].values}.")
    ending = search.train(Trial(number, drawn), trials, resumes=False)
    trial = Trial(number, drawn, ending)
    return Again(trial, trials[number].ending, ending_text(search.study, trial, None), search.train_command(trial))
