"""Ctrl-C in training: once finishes the step and saves, twice stops at once; both leave a run that goes on and say so."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from nexa_core import command
from nexa_core.config import RunConfig
from nexa_core.errors import Interrupted
from nexa_core.paths import Layout
from nexa_train.train import run
from tests.labs import make_config, write_config
from tests.test_training import files_of

AT_ONCE_SECONDS = 5.0
"""For a process to be gone, on a busy machine; the step that it was in takes minutes."""


class Train:
    """`nexa train` as a shell starts it: in a process group of its own, which is what a terminal sends Ctrl-C to."""

    def __init__(self, lab: Layout, config: RunConfig):
        path = write_config(lab.root / "run.yaml", config)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", "train", "--config", str(path)],
            env={**os.environ, "NEXA_ROOT": str(lab.root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said = ""

    def wait_for(self, words: str) -> None:
        stderr: IO[str] | None = self.process.stderr
        assert stderr is not None
        for line in stderr:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"it never said {words!r}:\n{self.said}")

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Exit code and last line."""
        _, rest = self.process.communicate(timeout=120)
        self.said += rest
        assert "Traceback" not in self.said
        return self.process.returncode, self.said.splitlines()[-1]


@pytest.fixture
def start(lab: Layout) -> Iterator["Start"]:
    with contextlib.ExitStack() as started:

        def begin(config: RunConfig) -> Train:
            train = Train(lab, config)
            started.callback(train.process.kill)
            return train

        yield begin


Start = Callable[[RunConfig], Train]


def long_config(world_size: int) -> RunConfig:
    return make_config("mlp", training={"epochs": 2000, "distributed": {"world_size": world_size}})


def test_ctrl_c_finishes_the_step_and_saves_it_and_the_run_goes_on_to_the_same_bytes(lab: Layout, start: Start) -> None:
    config = make_config("mlp", training={"epochs": 6, "checkpoints": {"every_steps": 1}})
    train = start(config)
    train.wait_for("epoch 1/6")
    train.interrupt()
    code, last_line = train.end()
    assert code == 130, train.said
    assert "Ctrl-C again stops at once" in train.said
    assert last_line.startswith("error: interrupted: step ")
    assert last_line.endswith("is finished and saved; the same command with --resume continues there")
    resumed = run(config, layout=lab, resume=True)
    assert len(list((lab.runs / "test").glob("mlp_*"))) == 1
    uninterrupted = run(config, layout=Layout(_other_lab(lab)))
    assert files_of(resumed.run.path) == files_of(uninterrupted.run.path)


def test_ctrl_c_twice_stops_at_once_even_in_the_middle_of_a_native_call(lab: Layout, start: Start) -> None:
    training = {"checkpoints": {"every_steps": 1}}
    train = start(
        make_config("mlp", model={"name": "tests.slow_model:make_model", "parameters": {}}, training=training)
    )
    _wait_until(lambda: any(lab.runs.glob("*/*/checkpoints/checkpoint_step1.pt")))
    _interrupt_twice(train)


def test_ctrl_c_while_a_string_is_executed_has_the_exit_code_that_others_have() -> None:
    """Python alone would end by the signal, without an exit code."""
    code = "from nexa_core.command import run_to_exit\nrun_to_exit(lambda: exec('raise KeyboardInterrupt'))\n"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "interrupted.py").write_text(code)
        path = os.pathsep.join([folder, str(Path(__file__).parent.parent)])
        done = subprocess.run(
            [sys.executable, "-m", "interrupted"],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.startswith("error: interrupted")


def test_ctrl_c_that_python_has_dropped_is_obeyed_after_the_first_step(
    lab: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_interrupts", [signal.SIGINT])
    with pytest.raises(Interrupted, match="step 1 is finished and saved"):
        run(make_config("mlp"), layout=lab)


def test_ctrl_c_before_the_first_step_ends_at_once_and_says_how_to_go_on(start: Start) -> None:
    train = start(long_config(1))
    train.wait_for("run mlp_")
    train.interrupt()
    code, last_line = train.end()
    assert code == 130
    assert "with --resume" in last_line


def test_ctrl_c_that_reaches_all_processes_ends_them_after_the_same_step(start: Start) -> None:
    """Our launchers give workers sessions of their own; others keep them in theirs, and the terminal tells all of them."""
    train = start(long_config(2))
    train.wait_for("epoch 3/2000")
    for worker in _workers_of(train.process.pid):
        os.kill(worker, signal.SIGINT)
    train.interrupt()
    code, last_line = train.end()
    assert code == 130, train.said
    assert last_line == "error: interrupted, and so were this node's workers; the same command with --resume continues"
    assert train.said.count("error:") == 1, "said by one process, not by each"
    assert train.said.count("is finished and saved; the same command with --resume continues there") == 1


def test_ctrl_c_twice_kills_the_processes(start: Start) -> None:
    train = start(long_config(2))
    train.wait_for("epoch 3/2000")
    workers = _workers_of(train.process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # so that none can save
    _interrupt_twice(train)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def _other_lab(lab: Layout) -> Path:
    other = lab.root.parent / "other"
    shutil.copytree(lab.processed, other / "data" / "processed")
    return other


def _interrupt_twice(train: Train) -> None:
    """It ends at once, and says how to go on."""
    train.interrupt()
    train.wait_for("Ctrl-C again stops at once")
    began = time.monotonic()
    train.interrupt()
    code, last_line = train.end()
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert (code, last_line) == (
        130,
        "error: stopped at once; the same command with --resume continues from the newest checkpoint",
    )


def _workers_of(launcher: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=True)
    assert len(found.stdout.split()) == 2
    return [int(worker) for worker in found.stdout.split()]


def _wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
