"""What a search tells of itself: the table, what mattered, and the page of plots."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nexa_core.config.tune import Choice, Integer, LogUniform, Uniform
from nexa_train.tune.importance import importance_of
from nexa_train.tune.page import make_page, write_page
from nexa_train.tune.plots import Axis
from nexa_train.tune.records import Ending, Study, Trial, best_of, ranked
from nexa_train.tune.report import Report
from nexa_train.tune.search import ending_text
from nexa_train.tune.space import Space

SPACE: Space = {
    "training.optimizer.lr": LogUniform(name="log_uniform", low=0.001, high=0.1),
    "model.parameters.dropout": Uniform(name="uniform", low=0.0, high=0.5),
    "training.batch_size": Integer(name="integer", low=8, high=32, step=8),
    "model.parameters.hidden_sizes": Choice(name="choice", values=([8], "<script>alert(1)</script>")),
}
STUDY = Study("s<b>", "tpe", 0, 4, "val_loss", "minimize", {key: {} for key in SPACE}, {"name": "asha"}, {}, "", 1)


def make_trials(count: int) -> list[Trial]:
    """Trials whose score is their learning rate's, and hardly anything else's."""
    trials = []
    for number in range(count):
        values = {
            "training.optimizer.lr": 0.001 * 100 ** ((number * 7 % count) / count),
            "model.parameters.dropout": (number * 3 % 5) / 10,
            "training.batch_size": 8 + 8 * (number % 4),
            "model.parameters.hidden_sizes": SPACE["model.parameters.hidden_sizes"].values[number % 2],  # type: ignore[union-attr]
        }
        value = values["training.optimizer.lr"] * 10 + 0.001 * values["model.parameters.dropout"]
        state: Any = "pruned" if number % 6 == 5 else "complete"
        reports = (value + 2, value + 1) if state == "pruned" else (value + 2, value + 1, value)
        ends = {} if number == 0 else {"low": value - 0.5, "high": value + 0.5}
        trials.append(
            Trial(number, values, Ending(state, reports[-1], reports, run_id=f"r{number}", seconds=1.0, **ends))
        )
    trials.append(Trial(count, trials[0].values, Ending("failed", None, reason="<img src=x onerror=alert(1)>")))
    return [*trials, Trial(count + 1, trials[0].values)]


def make_report(count: int, study: Study = STUDY) -> Report:
    trials = make_trials(count)
    best = best_of(study, trials)
    assert best is not None
    return Report(
        study=study,
        trials=tuple(ranked(study, trials)),
        best=best,
        importance=importance_of(study, SPACE, trials),
        trials_needed=40,
        command="nexa train --config a.yaml",
        place="journal.jsonl",
        note="",
        space=SPACE,
        page=Path("report.html"),
        caution="note: trial 0 was chosen",
    )


def test_the_table_has_the_best_first_and_the_rest_by_kind() -> None:
    report = make_report(24)
    assert (
        report.as_text()
        .splitlines()[0]
        .startswith("study s<b>: 26 trials (20 complete, 4 pruned, 1 failed, 1 unfinished), tpe")
    )
    states = ["unfinished" if trial.ending is None else trial.ending.state for trial in report.trials]
    assert states == ["complete"] * 20 + ["pruned"] * 4 + ["failed", "unfinished"]
    values = [trial.ending.value for trial in report.trials[:20] if trial.ending]
    assert values == sorted(values, key=float)  # type: ignore[arg-type]
    assert report.trials[0] is report.best
    most = make_report(24, replace(STUDY, direction="maximize"))
    assert most.best.ending.value == max(values, key=float)  # type: ignore[union-attr,arg-type]


def test_no_value_is_without_its_interval() -> None:
    """A line, a table and a page that print the value of a trial print how far it may be off beside it."""
    report = make_report(24)
    assert report.best.number == 0  # of an older record, which had none
    best, second = report.trials[:2]
    assert best.ending is not None
    assert second.ending is not None
    assert second.ending.value is not None
    known = f"{second.ending.value:.6g} ({second.ending.value - 0.5:.4g} to {second.ending.value + 0.5:.4g})"
    unknown = f"{best.ending.value:.6g} (interval unknown)"
    text, page = report.as_text(), make_page(report)
    assert known in text
    assert f"best: trial 0, val_loss {unknown}; train it" in text
    assert "note: trial 0 was chosen" in text
    assert f"val_loss {known}" in ending_text(STUDY, second, best)
    assert f"; best trial 0: {unknown}" in ending_text(STUDY, second, best)
    assert page.count(second.ending.interval_text) > 2  # in the table, and where a dot is pointed at
    assert "<small>interval unknown, trial 0</small>" in page
    assert "note: trial 0 was chosen" in page
    told = report.as_json()
    assert {key: told["best"][key] for key in ("low", "high")} == {"low": None, "high": None}
    assert told["trials"][second.number]["low"] == second.ending.low


def test_of_equal_trials_the_first_is_best() -> None:
    trials = [Trial(number, {}, Ending("complete", 1.0)) for number in range(3)]
    assert best_of(STUDY, trials) is trials[0]
    assert best_of(replace(STUDY, direction="maximize"), trials) is trials[0]


def test_importance_is_told_from_enough_trials_on() -> None:
    few = make_report(24)
    assert few.importance is None
    assert "20 complete trials are too few to tell; from 40 on" in few.as_text()
    enough = make_report(60)
    assert enough.importance is not None
    assert next(iter(enough.importance)) == "training.optimizer.lr"
    assert enough.importance["training.optimizer.lr"] > 0.9
    assert sum(enough.importance.values()) == pytest.approx(1)
    assert "importance (fANOVA, of 50 complete trials): training.optimizer.lr 9" in enough.as_text()


def test_of_many_trials_importance_is_measured_on_a_sample_and_says_so() -> None:
    report = make_report(723)
    assert report.counts["complete"] == 603
    assert "importance (fANOVA, of 500 drawn from 603 complete trials): training.optimizer.lr " in report.as_text()
    assert "explains by itself (fANOVA, of 500 drawn from 603 complete trials)." in make_page(report)


class Page(HTMLParser):
    """Tags that are opened, and those that are not closed as they should be."""

    VOID = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.mark.parametrize("count", [1, 2, 24, 60])
def test_the_page_shows_every_trial_and_runs_nothing(count: int, tmp_path: Path) -> None:
    report = make_report(count)
    text = write_page(report, tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("tr") == count + 3 + (len(SPACE) if report.importance else 0)
    assert page.tags.count("svg") == 2 + len(SPACE) + (len(SPACE) if report.importance else 0)
    assert not {"script", "img", "b", "link"} & set(page.tags)
    assert "default-src 'none'" in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert make_page(report) == text


def test_a_trial_without_validations_has_no_curve() -> None:
    report = make_report(6)
    bare = tuple(
        replace(trial, ending=replace(trial.ending, reports=())) if trial.ending else trial for trial in report.trials
    )
    assert "Validation by validation" in make_page(report)
    assert "Validation by validation" not in make_page(replace(report, trials=bare))


@pytest.mark.parametrize("values", [[1.0], [0.0], [-3.0, -3.0], [1e-9, 5.0], [0.11, 0.12], [-1e6, 1e6], [0.9, 19.0]])
def test_an_axis_has_its_values_and_round_numbers_inside(values: list[float]) -> None:
    axis = Axis.around(values, 0.0, 100.0)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 6
    assert all(0 <= axis.place(tick) <= 100 for tick in ticks)
