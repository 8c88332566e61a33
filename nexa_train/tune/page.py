"""The page of a search: what was tried and what came of it, drawn. It runs nothing and fetches nothing."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from nexa_core import durable
from nexa_train.tune.plots import CURVES_SHOWN, curves_plot, history_plot, share_bar, slice_plot
from nexa_train.tune.report import Report


def write_page(report: Report, path: Path) -> Path:
    durable.write_text(path, make_page(report))
    return path


def make_page(report: Report) -> str:
    """The page as HTML."""
    study, trials, best = report.study, report.trials, report.best
    seconds = sum(trial.ending.seconds for trial in trials if trial.ending is not None)
    importance = [(key, share, share_bar(share)) for key, share in (report.importance or {}).items()]
    return _template().render(
        study=study,
        trials=trials,
        best=best,
        counts=report.counts,
        seconds=seconds,
        command=report.command,
        note=report.note,
        caution=report.caution,
        place=report.place,
        importance=importance,
        measured=report.measured_text,
        trials_needed=report.trials_needed,
        history=history_plot(study, trials),
        slices=[(key, slice_plot(study, report.space, key, trials, best)) for key in report.space],
        curves=curves_plot(study, trials, best),
        curves_shown=CURVES_SHOWN,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=_short, duration=_duration)
    return environment.get_template("page.html")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """In the largest unit that gives a whole number."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
