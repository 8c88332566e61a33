"""Plots of a search as inline SVG: a page of them needs no script, and prints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from markupsafe import Markup

from nexa_core.config.tune import Choice, LogUniform
from nexa_train.tune.records import Study, Trial, ranked
from nexa_train.tune.space import Space

WIDTH, HEIGHT, SMALL_WIDTH = 640, 230, 310
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26
LOG_FROM = 20.0
"""The largest value over the smallest, from which on the values' axis is logarithmic."""
CURVES_SHOWN = 60


@dataclass(frozen=True)
class Axis:
    """Places of numbers between two ends of the drawing."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], begin: float, end: float) -> "Axis":
        low, high = min(values), max(values)
        is_log = low > 0 and high / low >= LOG_FROM
        if is_log:
            return cls(low / 1.1, high * 1.1, begin, end, is_log=True)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low - margin, high + margin, begin, end)

    def place(self, value: float) -> float:
        low, high, at = map(math.log, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers inside."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [step * 10.0**decade for decade in decades for step in steps]
                found = [tick for tick in found if self.low <= tick <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / 6)]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(step * each for each in (1, 2, 5, 10) if (self.high - self.low) / (step * each) <= 5)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def history_plot(study: Study, trials: Sequence[Trial]) -> Markup:
    """Each trial's value by its number, and the best so far."""
    shown = sorted(_with_values(trials), key=lambda trial: trial.number)
    y = Axis.around([_value(trial) for trial in shown], HEIGHT - BOTTOM, TOP)
    x = Axis(-0.5, max(1, shown[-1].number) + 0.5, LEFT, WIDTH - RIGHT)
    complete = [trial for trial in shown if _state(trial) == "complete"]
    pick = max if study.is_maximized else min
    best = accumulate((_value(trial) for trial in complete), pick)
    path = ""
    for trial, value in zip(complete, best, strict=True):
        across = _n(x.place(trial.number))
        path += f"H{across}V{_n(y.place(value))}" if path else f"M{across} {_n(y.place(value))}"
    path += f"H{_n(WIDTH - RIGHT)}" if path else ""
    drawn = _frame(y, WIDTH) + _marks(x, [tick for tick in x.ticks() if tick == int(tick)], HEIGHT)
    drawn += Markup('<path class="best" d="{}"/>').format(path)
    drawn += Markup().join(_dot(trial, x.place(trial.number), y.place(_value(trial)), study) for trial in shown)
    return _svg(drawn, WIDTH, HEIGHT, f"{study.metric} of each trial, and the best so far")


def slice_plot(study: Study, space: Space, key: str, trials: Sequence[Trial], best: Trial) -> Markup:
    """Each trial's value by what it had of one key."""
    shown, distribution = _with_values(trials), space[key]
    y = Axis.around([_value(trial) for trial in shown], HEIGHT - BOTTOM, TOP)
    drawn = _frame(y, SMALL_WIDTH)
    if isinstance(distribution, Choice):
        place, marks = _choices(distribution.values)
        drawn += Markup().join(_text(text, at, HEIGHT - 8, "middle") for text, at in marks)
    else:
        is_log = isinstance(distribution, LogUniform)
        low, high = float(distribution.low), float(distribution.high)
        room = (low / 1.1, high * 1.1) if is_log else (low - (high - low) * 0.03, high + (high - low) * 0.03)
        x = Axis(*room, LEFT, SMALL_WIDTH - RIGHT, is_log=is_log)
        drawn += _marks(x, x.ticks(), HEIGHT)
        place = x.place
    for trial in sorted(shown, key=lambda trial: trial.number == best.number):
        is_best = trial.number == best.number
        drawn += _dot(trial, place(trial.values[key]), y.place(_value(trial)), study, is_best=is_best)
    return _svg(drawn, SMALL_WIDTH, HEIGHT, f"{study.metric} by {key}")


def curves_plot(study: Study, trials: Sequence[Trial], best: Trial) -> Markup | None:
    """What each trial had after each validation; None where no trial was validated more than once."""
    shown = [trial for trial in ranked(study, list(trials)) if trial.ending and trial.ending.reports][:CURVES_SHOWN]
    longest = max((len(trial.ending.reports) for trial in shown if trial.ending), default=0)
    if longest < 2:
        return None
    values = np.concatenate([trial.ending.reports for trial in shown if trial.ending])
    y = Axis.around(values.tolist(), HEIGHT - BOTTOM, TOP)
    x = Axis(1, longest, LEFT, WIDTH - RIGHT - 6)
    drawn = _frame(y, WIDTH) + _marks(x, [tick for tick in x.ticks() if tick == int(tick)], HEIGHT)
    for trial in reversed(shown):  # the best lies on top
        ending = trial.ending
        assert ending is not None
        points = [f"{_n(x.place(step))} {_n(y.place(value))}" for step, value in enumerate(ending.reports, start=1)]
        name = "curve best" if trial.number == best.number else f"curve {ending.state}"
        drawn += Markup('<path class="{}" d="M{}"><title>{}</title></path>').format(
            name, "L".join(points), _title(study, trial)
        )
        if ending.state == "pruned":
            across, up = points[-1].split()
            drawn += Markup('<circle class="stop" cx="{}" cy="{}" r="2.2"/>').format(across, up)
    return _svg(drawn, WIDTH, HEIGHT, f"{study.metric} of each trial after each validation")


def share_bar(share: float) -> Markup:
    """A bar of a share of the whole width."""
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="share" width="{}" height="10"/></svg>'
    ).format(_n(share * 100))


def _with_values(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.ending is not None and trial.ending.value is not None]


def _value(trial: Trial) -> float:
    assert trial.ending is not None
    assert trial.ending.value is not None
    return trial.ending.value


def _value_text(trial: Trial) -> str:
    return "-" if trial.ending is None else trial.ending.value_text or "-"


def _state(trial: Trial) -> str:
    return "unfinished" if trial.ending is None else trial.ending.state


def _choices(values: Sequence[Any]) -> tuple[Any, list[tuple[str, float]]]:
    wide = (SMALL_WIDTH - RIGHT - LEFT) / len(values)
    places = [LEFT + wide * (index + 0.5) for index in range(len(values))]
    most = max(3, int(wide / 6))
    texts = [str(value) for value in values]
    short = [text if len(text) <= most else f"{text[: most - 1]}…" for text in texts]
    return (lambda value: places[list(values).index(value)]), list(zip(short, places, strict=True))


def _dot(trial: Trial, x: float, y: float, study: Study, *, is_best: bool = False) -> Markup:
    name = f"dot {_state(trial)}{' best' if is_best else ''}"
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
        name, _n(x), _n(y), 5 if is_best else 3.2, _title(study, trial)
    )


def _title(study: Study, trial: Trial) -> str:
    settings = "\n".join(f"{key}: {_short(value)}" for key, value in trial.values.items())
    return f"trial {trial.number}, {_state(trial)}\n{study.metric}: {_value_text(trial)}\n{settings}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _frame(y: Axis, width: int) -> Markup:
    drawn = Markup()
    for tick in y.ticks():
        up = _n(y.place(tick))
        drawn += Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, up, width - RIGHT)
        drawn += _text(f"{tick:.4g}", LEFT - 6, y.place(tick) + 4, "end")
    return drawn


def _marks(x: Axis, ticks: Sequence[float], height: int) -> Markup:
    return Markup().join(_text(f"{tick:.4g}", x.place(tick), height - 8, "middle") for tick in ticks)


def _svg(drawn: Markup, width: int, height: int, label: str) -> Markup:
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, drawn
    )


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, text)


def _n(value: float) -> str:
    """A coordinate, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
