"""Killed at random moments, started again: the bytes of a run that nothing happened to, for every kind of task."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexa_core.config import RunConfig
from nexa_core.errors import NexaError
from nexa_core.paths import Layout
from nexa_train.train import run
from tests.folders import bert, llama
from tests.labs import make_config, make_lab, write_config
from tests.test_training import files_of

TINY = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 32, "dropout": 0.1}
OFTEN = {"epochs": 3, "batch_size": 16, "checkpoints": {"every_steps": 3}, "data_workers": 3}

TASKS: dict[str, dict[str, Any]] = {
    "mlp": {"training": {**OFTEN, "batch_size": 64, "gradient_accumulation_steps": 2}},
    "pairs in packs": {"training": {**OFTEN, "packing": {}}},
    "chats by length": {"data": {"dataset": "chats"}, "training": {**OFTEN, "length_grouping": True}},
    "documents": {
        "data": {"dataset": "documents"},
        "training": {**OFTEN, "packing": {"max_tokens": 64}, "activation_checkpointing": True},
    },
    "adapters": {
        "model": {
            "name": "causal_lm",
            "path": "llama",
            "lora": {"rank": 2, "dropout": 0.1},
            "parameters": {"max_tokens": 48},
        },
        "training": {**OFTEN, "packing": {"max_tokens": 96}},
    },
    "encoder": {
        "data": {"dataset": "topics"},
        "model": {"name": "encoder_classifier", "path": "bert", "parameters": {"max_tokens": 32, "dropout": 0.1}},
        "training": OFTEN,
    },
}


@dataclass(frozen=True)
class Uninterrupted:
    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets, and the models that two of the tasks begin with."""
    root = tmp_path_factory.mktemp("prepared")
    make_lab(root)
    llama(root / "llama", num_attention_heads=2)
    bert(root / "bert")
    return root


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Uninterrupted]:
    """Of each task, filled as it is asked for."""
    return {}


def config_of(task: str, root: Path, **training: Any) -> RunConfig:
    sections = {name: dict(section) for name, section in TASKS[task].items()}
    sections["training"].update(training)
    if "path" in sections.get("model", {}):
        sections["model"]["path"] = str(root / sections["model"]["path"])
    if task == "mlp":
        return make_config("mlp", **sections)
    sections.setdefault("model", {"name": "causal_lm", "parameters": TINY})
    sections.setdefault("data", {"dataset": "pairs"})
    return make_config("causal_lm", **sections)


def whole(task: str, prepared: Path, kept: dict[str, Uninterrupted], tmp_path: Path) -> Uninterrupted:
    if task not in kept:
        shutil.copytree(prepared, tmp_path / "whole")
        began = time.monotonic()
        result = run(config_of(task, prepared), layout=Layout(tmp_path / "whole"))
        kept[task] = Uninterrupted(files_of(result.run.path), time.monotonic() - began)
    return kept[task]


def run_and_kill(config: RunConfig, lab: Layout, *, after: float, by: signal.Signals) -> int | None:
    """Train in a child process and send it a signal; its exit code, or None where the signal killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(config, layout=lab, resume=True)
            code = 0
        except NexaError as error:
            code = error.exit_code
        except Exception:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    time.sleep(after)
    os.kill(child, by)
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def kill_at_random(task: str, seed: int, prepared: Path, kept: dict[str, Uninterrupted], tmp_path: Path) -> None:
    expected = whole(task, prepared, kept, tmp_path)
    shutil.copytree(prepared, tmp_path / "lab")
    lab, draw = Layout(tmp_path / "lab"), random.Random(seed)
    config = config_of(task, prepared)
    for _ in range(3):
        by = draw.choice([signal.SIGKILL, signal.SIGTERM])
        code = run_and_kill(config, lab, after=draw.uniform(0.05, 1.2 * expected.seconds), by=by)
        assert code in (None, 0, 143), code
    result = run(config, layout=lab, resume=True)
    assert files_of(result.run.path) == expected.files
    assert len([path for path in (lab.runs / "test").iterdir() if path.is_dir()]) <= 3  # killed before it had a lineage


@pytest.mark.parametrize("task", TASKS)
def test_every_task_survives_random_kills(
    task: str, prepared: Path, uninterrupted: dict[str, Uninterrupted], tmp_path: Path
) -> None:
    kill_at_random(task, 0, prepared, uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_twenty_more_runs_survive_random_kills(
    seed: int, prepared: Path, uninterrupted: dict[str, Uninterrupted], tmp_path: Path
) -> None:
    kill_at_random(list(TASKS)[seed % len(TASKS)], seed, prepared, uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_runs_of_two_processes_survive_random_kills(
    seed: int, prepared: Path, uninterrupted: dict[str, Uninterrupted], tmp_path: Path
) -> None:
    """The whole command is killed or told to end, or one of its processes is."""
    draw = random.Random(100 + seed)
    task = draw.choice(list(TASKS))
    expected = whole(task, prepared, uninterrupted, tmp_path)
    shutil.copytree(prepared, tmp_path / "lab")
    lab = Layout(tmp_path / "lab")
    path = write_config(tmp_path / "run.yaml", config_of(task, prepared, distributed={"world_size": 2}))
    command = [sys.executable, "-m", "nexa_train.train", "--config", str(path), "--resume"]
    environment = {**os.environ, "NEXA_ROOT": str(lab.root)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(lab.runs.glob("*/*/metrics.jsonl")):
        time.sleep(0.05)  # the processes have met
    time.sleep(draw.uniform(0, expected.seconds))
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "distributed.worker"], capture_output=True, text=True, check=False
    ).stdout.split()
    victim = int(draw.choice([str(process.pid), *workers]))
    by = draw.choice([signal.SIGKILL, signal.SIGTERM])
    if victim == process.pid and by == signal.SIGKILL:  # as a node's power cut: all of it
        for worker in workers:
            os.kill(int(worker), signal.SIGKILL)
    os.kill(victim, by)
    process.communicate(timeout=180)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = {path.parent for path in lab.runs.glob("*/*/predictions.parquet")}
    assert files_of(folder) == expected.files
