"""Small studies for tests: a config file with a `tune` section, workers that are killed, and what a record says."""

import json
import os
import shlex
import signal
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from nexa_core.config import RunConfig, load_config
from nexa_core.errors import NexaError
from nexa_core.paths import Layout
from nexa_train.finish import TrainingResult
from nexa_train.train import run
from nexa_train.tune.records import Trial
from nexa_train.tune.search import Search
from scripts.hyperparameter_search import TABLES
from tests.labs import make_config

SPACE: dict[str, Any] = {
    "training.optimizer.lr": {"name": "log_uniform", "low": 0.001, "high": 0.1},
    "model.parameters.dropout": {"name": "uniform", "low": 0.0, "high": 0.5},
}


def write_study(path: Path, *, model: str = "mlp", training: dict[str, Any] | None = None, **tune: Any) -> Path:
    """A config of short runs with a `tune` section."""
    config = make_config(model, training={"epochs": 3, "batch_size": 256, **(training or {})})
    resolved = {**config.resolved(), "tune": {"space": SPACE, **tune}}
    path.write_text(yaml.safe_dump(resolved, sort_keys=False))
    return path


def search_of(path: Path, lab: Layout, *, overrides: list[str] | None = None) -> Search:
    return Search(path, lab, tables=TABLES, overrides=overrides or [])


def trials_of(path: Path, lab: Layout, num_trials: int) -> list[Trial]:
    """A study that is brought to its end in this process."""
    search = search_of(path, lab)
    search.work(num_trials)
    return search.trials()


def found(trials: list[Trial]) -> list[Any]:
    """All that has to be equal, however the study was worked on."""
    assert all(trial.ending is not None for trial in trials)
    return [
        (trial.number, trial.values, trial.ending.state, trial.ending.value, trial.ending.reports, trial.ending.reason)
        for trial in trials
        if trial.ending is not None
    ]


def start_worker(path: Path, lab: Layout, num_trials: int, *, log: Path) -> int:
    """A process that works on the study."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        search_of(path, lab).work(num_trials)
        code = 0
    except NexaError as error:
        log.write_text(str(error))
        code = error.exit_code
    except BaseException:
        log.write_text(traceback.format_exc())
        raise
    finally:
        os._exit(code)


def end_of(child: int) -> int | None:
    """The exit code of a worker; None where a signal killed it."""
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def work_and_kill(path: Path, lab: Layout, num_trials: int, *, after: float, by: signal.Signals, log: Path) -> None:
    child = start_worker(path, lab, num_trials, log=log)
    time.sleep(after)
    os.kill(child, by)
    code = end_of(child)
    assert code in (None, 0, 143), log.read_text() if log.exists() else code


def run_command(command: str, lab: Layout) -> TrainingResult:
    """What a `nexa train` line does."""
    words = shlex.split(command)
    assert words[:3] == ["nexa", "train", "--config"]
    assert words[4::2] == ["--override"] * (len(words[4:]) // 2)
    return run(load_config(Path(words[3]), RunConfig, overrides=words[5::2]), layout=lab)


def losses_of(result: TrainingResult) -> list[float]:
    lines = [json.loads(line) for line in result.run.step_metrics.read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line]


def assert_each_ran_once(lab: Layout) -> None:
    """Every trial has one run that went on after each kill; one that was killed before it had its lineage does not count."""
    names = Counter(path.parent.name.rpartition("_20")[0] for path in lab.runs.glob("*/*/lineage.json"))
    assert names
    assert set(names.values()) == {1}, names
