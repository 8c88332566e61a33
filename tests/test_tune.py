"""A search finds the same whoever works on it and whatever kills them, and its best trial is a `train` command."""

import json
import random
import re
import shlex
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_eval.evaluate import evaluate
from nexa_train.tune.records import Trial, best_of
from nexa_train.tune.report import Report
from tests.studies import (
    SPACE,
    assert_each_ran_once,
    found,
    losses_of,
    run_command,
    search_of,
    trials_of,
    work_and_kill,
    write_study,
)

NUM_TRIALS = 6
LR = "training.optimizer.lr"
UNIT = {"name": "uniform", "low": 0.0, "high": 1.0}


@dataclass(frozen=True)
class Whole:
    trials: list[Trial]
    seconds: float


STUDIES: dict[str, dict[str, Any]] = {
    "random": {},
    "tpe with asha": {"strategy": "tpe", "parallel": 2, "pruner": {"name": "asha", "reduction_factor": 2}},
}


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """Each study, never interrupted."""
    kept = {}
    for name, tune in STUDIES.items():
        root = tmp_path_factory.mktemp("whole")
        shutil.copytree(prepared, root / "lab")
        began = time.monotonic()
        trials = trials_of(write_study(root / "run.yaml", **tune), Layout(root / "lab"), NUM_TRIALS)
        kept[name] = Whole(trials, time.monotonic() - began)
    return kept


def test_the_best_trial_is_a_train_command_with_the_same_scores(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml")
    search = search_of(path, lab, overrides=["training.batch_size=128", "tune.seed=5"])
    search.work(3)
    report = Report.of(search)
    result = run_command(report.command, lab)
    assert report.best.ending is not None
    assert min(losses_of(result)) == report.best.ending.value
    assert tuple(losses_of(result)) == report.best.ending.reports
    trial_run = json.loads((lab.run_manifests / f"{report.best.ending.run_id}.json").read_text())
    assert trial_run["metrics"] == result.manifest["metrics"]


def test_a_value_has_its_interval_and_the_best_is_told_to_be_chosen(lab: Layout, tmp_path: Path) -> None:
    """By its own validation rows; what it has on the others is said beside it."""
    path = write_study(tmp_path / "run.yaml", metric="val_accuracy", pruner={"name": "asha", "reduction_factor": 2})
    trials = trials_of(path, lab, 5)
    states = set()
    for trial in trials:
        assert trial.ending is not None
        states.add(trial.ending.state)
        run = lab.root / trial.ending.run_dir
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        there = [line for line in lines if line.get("val_accuracy") == trial.ending.value]
        assert (trial.ending.low, trial.ending.high) in [
            (line["val_accuracy_low"], line["val_accuracy_high"]) for line in there
        ]
        assert trial.ending.low < trial.ending.value < trial.ending.high  # type: ignore[operator]
    assert states == {"complete", "pruned"}
    report = Report.of(search_of(path, lab))
    assert report.best.ending is not None
    scored = json.loads((lab.root / report.best.ending.run_dir / "metrics.json").read_text())
    accuracy = scored["metrics"]["accuracy"]
    test_score = f"accuracy {accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f})"
    assert f"was chosen by its val_accuracy among {len(trials)} trials, so that flatters it" in report.caution
    assert report.caution.endswith(f"On the test split, which chose nothing: {test_score}")
    assert report.caution in report.as_text()


def test_where_the_test_split_was_left_alone_the_report_says_how_to_ask_it(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml", metric="accuracy")
    overrides = ["evaluation.split=val"]
    search = search_of(path, lab, overrides=overrides)
    search.work(1)
    assert Report.of(search).caution == ""  # nothing was chosen
    search.work(2)
    best = Report.of(search).best.ending
    assert best is not None
    scored = json.loads((lab.root / best.run_dir / "metrics.json").read_text())["metrics"]["accuracy"]
    assert (best.value, best.low, best.high) == tuple(scored[key] for key in ("value", "low", "high"))
    command = shlex.split(Report.of(search).caution.rpartition(": ")[2])
    assert command[:3] == ["nexa", "evaluate", "--checkpoint"]
    result = evaluate(lab.root / command[3], layout=lab, overrides=[command[5]])
    assert result.metrics["split"] == "test"


def test_trials_are_runs_that_replace_no_other(lab: Layout, tmp_path: Path) -> None:
    trials = trials_of(write_study(tmp_path / "run.yaml"), lab, 2)
    for trial in trials:
        assert trial.ending is not None
        assert re.match(rf"artifacts/runs/test_tune/mlp_t00{trial.number}_", trial.ending.run_dir)
        for name in ("config.yaml", "metrics.json", "lineage.json", "checkpoints/best.pt"):
            assert (lab.root / trial.ending.run_dir / name).exists()
        assert (lab.run_manifests / f"{trial.ending.run_id}.json").exists()
    assert not lab.checkpoints.exists()
    assert not (lab.run_manifests / "run_manifest.json").exists()


def test_more_trials_go_on_with_the_study(lab: Layout, tmp_path: Path, whole: dict[str, Whole]) -> None:
    path = write_study(tmp_path / "run.yaml", **STUDIES["tpe with asha"])
    first = trials_of(path, lab, 3)
    assert found(trials_of(path, lab, 3)) == found(first)
    assert found(trials_of(path, lab, NUM_TRIALS)) == found(whole["tpe with asha"].trials)


@pytest.mark.parametrize("study", STUDIES)
def test_killed_anywhere_it_finds_the_same(study: str, prepared: Path, whole: dict[str, Whole], tmp_path: Path) -> None:
    kill_at_random(study, 0, prepared, whole[study], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_anywhere_twenty_times_more(seed: int, prepared: Path, whole: dict[str, Whole], tmp_path: Path) -> None:
    study = list(STUDIES)[seed % len(STUDIES)]
    kill_at_random(study, seed, prepared, whole[study], tmp_path)


def kill_at_random(study: str, seed: int, prepared: Path, expected: Whole, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "lab")
    lab, draw = Layout(tmp_path / "lab"), random.Random(seed)
    path = write_study(tmp_path / "run.yaml", **STUDIES[study])
    for _ in range(4):
        by = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        after = draw.uniform(0.05, expected.seconds)
        work_and_kill(path, lab, NUM_TRIALS, after=after, by=by, log=tmp_path / "worker.log")
    search = search_of(path, lab)
    search.work(NUM_TRIALS)
    assert found(search.trials()) == found(expected.trials)
    assert best_of(search.study, search.trials()).number == best_of(search.study, expected.trials).number  # type: ignore[union-attr]
    assert_each_ran_once(lab)


def test_a_torn_record_is_taken_up_where_it_is_whole(prepared: Path, whole: dict[str, Whole], tmp_path: Path) -> None:
    """Cut anywhere, as a kill or a power cut in the middle of a write leaves it."""
    shutil.copytree(prepared, tmp_path / "lab")
    lab = Layout(tmp_path / "lab")
    path = write_study(tmp_path / "run.yaml", **STUDIES["tpe with asha"])
    expected = found(trials_of(path, lab, NUM_TRIALS))
    journal = lab.artifacts / "tune" / "test_tune" / "journal.jsonl"
    record = journal.read_bytes()
    lines = record.splitlines(keepends=True)
    for length in (len(record) - 1, len(record) - len(lines[-1]) // 2, len(b"".join(lines[:-2])) + 7, 30):
        journal.write_bytes(record[:length])
        assert found(trials_of(path, lab, NUM_TRIALS)) == expected == found(whole["tpe with asha"].trials)


def test_a_run_that_was_finished_when_its_worker_died_is_taken_as_it_is(
    prepared: Path, whole: dict[str, Whole], tmp_path: Path
) -> None:
    """All but the trials' ends is there: what pruners noted down is found again as well."""
    shutil.copytree(prepared, tmp_path / "lab")
    lab = Layout(tmp_path / "lab")
    path = write_study(tmp_path / "run.yaml", **STUDIES["tpe with asha"])
    trials_of(path, lab, 3)
    journal = lab.artifacts / "tune" / "test_tune" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"end"' not in line or b'"number": 0' in line))
    runs = sorted(lab.run_manifests.glob("*.json"))
    trials = trials_of(path, lab, NUM_TRIALS)
    assert found(trials) == found(whole["tpe with asha"].trials)
    assert [t.ending.notes for t in trials if t.ending] == [
        t.ending.notes for t in whole["tpe with asha"].trials if t.ending
    ]
    assert set(runs) <= set(lab.run_manifests.glob("*.json"))


def test_pruned_trials_stop_at_a_step_and_say_so(whole: dict[str, Whole]) -> None:
    pruned = [
        trial.ending for trial in whole["tpe with asha"].trials if trial.ending and trial.ending.state == "pruned"
    ]
    assert pruned
    for ending in pruned:
        assert len(ending.reports) < 3
        assert ending.step == 6 * len(ending.reports)
        assert ending.reason == f"given up at step {ending.step} of 18"
        assert ending.run_dir


def test_failed_trials_are_recorded_and_the_study_goes_on(lab: Layout, tmp_path: Path) -> None:
    space = {"training.optimizer.lr": {"name": "choice", "values": [0.01, 1e30]}}
    path = write_study(tmp_path / "run.yaml", space=space, max_failed_in_a_row=3, seed=1)
    search = search_of(path, lab)
    search.work(5)
    endings = [trial.ending for trial in search.trials() if trial.ending]
    assert {ending.state for ending in endings} == {"complete", "failed"}
    assert all("Lower training.optimizer.lr" in ending.reason for ending in endings if ending.state == "failed")
    assert Report.of(search).best.values == {"training.optimizer.lr": 0.01}


def test_too_many_failures_stop_the_study(lab: Layout, tmp_path: Path) -> None:
    space = {"training.optimizer.lr": {"name": "choice", "values": [1e30]}}
    search = search_of(write_study(tmp_path / "run.yaml", space=space, max_failed_in_a_row=2), lab)
    with pytest.raises(GateError, match=r"2 trials failed one after another.*\n.*journal.jsonl"):
        search.work(9)
    assert len(search.trials()) == 2
    with pytest.raises(GateError, match="None of 2 trials came to its end"):
        Report.of(search)


def test_any_key_can_be_searched(lab: Layout, tmp_path: Path) -> None:
    space = {
        "model.parameters.hidden_sizes": {"name": "choice", "values": [[8], [16, 8]]},
        "training.batch_size": {"name": "integer", "low": 128, "high": 256, "step": 128},
        "training.optimizer.weight_decay": {"name": "uniform", "low": 0.0, "high": 1.0, "points": 2},
    }
    path = write_study(tmp_path / "run.yaml", space=space, strategy="grid", training={"epochs": 1})
    search = search_of(path, lab)
    search.work(99)
    tried = [tuple(map(str, trial.values.values())) for trial in search.trials()]
    assert len(tried) == len(set(tried)) == 8
    assert "the grid has 8 points" in Report.of(search).as_text()
    assert (
        tuple(losses_of(run_command(search.train_command(search.trials()[5]), lab)))
        == search.trials()[5].ending.reports
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"space": {"training.optimzer.lr": UNIT}}, "Unknown key 'training.optimzer'. Did you mean 'training.optimizer'"),
        ({"space": {"training.batch_size": UNIT}}, "run.yaml:[0-9]+: training.batch_size is 0.0"),
        ({"space": {"training.batch_size": {"name": "integer", "low": 0, "high": 9}}}, "training.batch_size is 0"),
        ({"space": {LR: {**UNIT, "name": "unifrom"}}}, f"Unknown tune.space.{LR}.name 'unifrom'. Did you mean 'uniform'"),
        ({"space": {LR: {**UNIT, "high": -1.0}}}, f"tune.space.{LR}.high: has to lie above low"),
        ({"space": {LR: {**UNIT, "lo": 0.0}}}, f"Unknown key 'tune.space.{LR}.lo'. Did you mean 'tune.space.{LR}.low'"),
        ({"space": {"experiment": {"name": "choice", "values": ["a"]}}}, "nothing that a trial can have of its own"),
        ({"strategy": "tpee"}, "Unknown strategy 'tpee'. Did you mean 'tpe'"),
        ({"strategy": "grid"}, "needs `points`"),
        ({"strategy": "grid", "space": {}}, "A grid needs `tune.space`"),
        ({"pruner": {"name": "ashaa"}}, "Unknown pruner 'ashaa'. Did you mean 'asha'"),
        ({"metric": "accuracy"}, "the test split, which must not choose"),
        ({"metric": "cleverness"}, "must not choose.*Known are val_loss"),
        ({"storage": "mysql://x"}, "postgresql://"),
        ({"storage": "postgresql://me:secret@host/db"}, "holds a password"),
        ({"lease_seconds": 9.0}, "belongs to `storage`"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(lab: Layout, tmp_path: Path, tune: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        search_of(write_study(tmp_path / "run.yaml", **tune), lab)
    assert not (lab.artifacts / "tune").exists()


def test_another_study_does_not_go_on_with_this_one(lab: Layout, tmp_path: Path) -> None:
    trials_of(write_study(tmp_path / "run.yaml"), lab, 1)
    for change, words in (
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"training": {"epochs": 2}}, "config.training.epochs was 3 and is 2"),
        ({"space": {"training.optimizer.lr": SPACE["training.optimizer.lr"]}}, "space.model.parameters.dropout was"),
    ):
        with pytest.raises(UserError, match=f"begun with other settings.*{words}"):
            search_of(write_study(tmp_path / "run.yaml", **change), lab)


def test_scores_of_the_validation_split_may_choose(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml", metric="accuracy")
    search = search_of(path, lab, overrides=["evaluation.split=val"])
    search.work(2)
    for trial in search.trials():
        assert trial.ending is not None
        manifest = json.loads((lab.run_manifests / f"{trial.ending.run_id}.json").read_text())
        assert trial.ending.value == manifest["metrics"]["accuracy"]
    assert search.study.is_maximized


def nearby(seed: int, space: Any) -> Any:
    """A strategy of one's own, which keeps its state in the study."""
    return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=2, warn_independent_sampling=False)


def never_before_the_second(settings: Any, num_validations: int) -> Any:
    """A pruner of one's own."""
    return optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=settings.min_validations)


def test_a_strategy_and_a_pruner_of_ones_own(lab: Layout, tmp_path: Path) -> None:
    own = {
        "strategy": "tests.test_tune:nearby",
        "pruner": {"name": "tests.test_tune:never_before_the_second", "min_validations": 2},
        "parallel": 1,
    }
    path = write_study(tmp_path / "run.yaml", **own)
    for count in (2, 4, 5):  # each time by a new worker
        trials = trials_of(path, lab, count)
    assert len({trial.values["training.optimizer.lr"] for trial in trials}) == 5
    search = search_of(path, lab)
    assert [search.mirror.draw(number, trials) for number in range(5)] == [trial.values for trial in trials]
    assert all(len(trial.ending.reports) >= 2 for trial in trials if trial.ending)
