"""Quality steps: what is measured of a text, and between which limits a row is kept.

Scores depend on the text alone and are kept; limits are applied to them afterwards, so that other limits need no second
look at the text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nexa_core.config.data import DatasetConfig
from nexa_core.config.quality import CustomStep, PrivateStep, QualityStep
from nexa_core.lookup import look_up

STEPS = {
    "length": "nexa_data.quality.words:length",
    "repetition": "nexa_data.quality.repetition:repetition",
    "symbols": "nexa_data.quality.words:symbols",
    "language": "nexa_data.quality.language:language",
    "refusals": "nexa_data.quality.phrases:refusals",
    "citations": "nexa_data.quality.phrases:citations",
    "format": "nexa_data.quality.phrases:form",
    "private": "nexa_data.quality.private:private",
}


@dataclass(frozen=True)
class Limit:
    """The values of a score with which a row is kept; None where there is no limit on that side."""

    score: str
    least: float | None = None
    most: float | None = None

    def reason(self, values: np.ndarray) -> np.ndarray:
        """For each value why its row is left out, or an empty text."""
        low = np.zeros(len(values), bool) if self.least is None else values < self.least
        high = np.zeros(len(values), bool) if self.most is None else values > self.most
        too_low, too_high = f"{self.score} below {self.least:g}" if self.least is not None else "", ""
        if self.most is not None:
            too_high = f"{self.score} above {self.most:g}"
        return np.where(low, too_low, np.where(high, too_high, ""))


@dataclass(frozen=True)
class Step:
    """A step as the settings have it."""

    names: tuple[str, ...]
    """Of the scores."""
    measure: Callable[[str], Sequence[float]]
    """A text's scores, one for each name; each is a finite number."""
    limits: tuple[Limit, ...]

    def reasons(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """For each row why it is left out, the first limit first, or an empty text."""
        found = np.zeros(len(next(iter(scores.values()))), dtype="<U1")
        for limit in self.limits:
            found = np.where(found != "", found, limit.reason(scores[limit.score]))
        return found


def open_step(settings: QualityStep) -> Step:
    """The step that the settings name.

    Raises:
        UserError: a user's own function cannot be imported, or does not take these parameters.
    """
    if isinstance(settings, CustomStep):
        from nexa_data.quality.own import own_step  # which is made of what is here

        return own_step(settings)
    step: Step = look_up(STEPS, settings.name, what="quality step")(settings)
    return step


def look_of(kind: str, settings: QualityStep) -> Callable[[Mapping[str, Any]], str]:
    """What a step looks at of a canonical row of that kind; for private data that is not blanked before, all columns."""
    if isinstance(settings, PrivateStep) and settings.of == "all" and settings.action == "reject":
        from nexa_data.quality.private import all_texts  # which is made of what is here

        return all_texts
    return looked_at(kind, settings.of)


def looked_at(kind: str, of: str) -> Callable[[Mapping[str, Any]], str]:
    """The text of a canonical row of that kind, or one side of it."""
    if kind == "text":
        return lambda columns: str(columns["text"])
    if kind == "pairs":
        sides = ("prompt", "completion") if of == "all" else (of,)
        return lambda columns: "\n".join(columns[side] for side in sides if columns[side] is not None)
    wanted = {"all": (True, False), "completion": (True,), "prompt": (False,)}[of]
    return lambda columns: "\n".join(
        message["content"] for message in columns["messages"] if (message["role"] == "assistant") in wanted
    )


def step_names(config: DatasetConfig) -> list[str]:
    """What the steps are called: their names, numbered where one comes more than once."""
    return numbered([step.name for step in config.quality])


def numbered(names: Sequence[str]) -> list[str]:
    """Names, with a number behind those that come more than once."""
    return [
        f"{name} {names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
