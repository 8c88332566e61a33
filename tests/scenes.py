"""Scenes for messages: a laboratory, the real command line in this process, and all that is said there."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from nexa_core.command import run_to_exit
from nexa_core.config import RunConfig
from nexa_core.errors import NexaError
from nexa_core.paths import Layout
from nexa_train.train import run
from scripts.cli import main
from tests.conftest import FinishedLab


@dataclass(frozen=True)
class Scene:
    """Where one message is provoked; the laboratories of tests/conftest.py are made when they are asked for."""

    root: Path
    """An empty folder."""
    monkeypatch: pytest.MonkeyPatch
    fixture: Callable[[str], Any]

    @property
    def lab(self) -> Layout:
        """With prepared datasets."""
        lab: Layout = self.fixture("lab")
        return lab

    @property
    def finished(self) -> FinishedLab:
        """With finished runs and their packages."""
        lab: FinishedLab = self.fixture("finished_lab")
        return lab

    def nexa(self, *arguments: object, root: Path | None = None, exits: int = 2, stdout: IO[str] | None = None) -> str:
        """All that a command prints which ends with this exit code; only what is for people, where stdout is given."""
        said = io.StringIO()
        with self.monkeypatch.context() as inside, _logging_as_it_was():
            inside.setenv("NEXA_ROOT", str(root or self.root))
            inside.chdir(self.root)
            with (
                contextlib.redirect_stdout(stdout or said),
                contextlib.redirect_stderr(said),
                pytest.raises(SystemExit) as ended,
            ):
                main([str(each) for each in arguments])
        assert (ended.value.code or 0) == exits, said.getvalue()
        return said.getvalue()


def refused(work: Callable[[], object]) -> str:
    """What a command prints in which this work fails."""
    with pytest.raises(NexaError) as error:
        work()
    return str(error.value)


def logged(work: Callable[[], object]) -> str:
    """What a command logs that does this work."""
    heard = _Heard()
    with _logging_as_it_was():
        logging.getLogger().addHandler(heard)
        for package in ("nexa_core", "nexa_data", "nexa_train"):
            logging.getLogger(package).setLevel(logging.INFO)
        work()
    return "\n".join(heard.messages)


def told_while_training(lab: Layout, config: RunConfig, *signals: signal.Signals) -> str:
    """What a training process says that gets these signals after its first epoch."""
    path = lab.root / "said.txt"
    child = os.fork()
    if child == 0:
        code: Any = 1
        try:
            said = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout = sys.stderr = os.fdopen(said, "w", buffering=1)
            logging.getLogger("nexa_train").addHandler(_Tell(signals))
            run_to_exit(lambda: run(config, layout=lab))
            code = 0
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    os.waitpid(child, 0)
    return path.read_text()


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Puts back what a command changes of its process."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("nexa_core", "nexa_data", "nexa_train")}
    try:
        yield
    finally:
        root.handlers, threading.excepthook = handlers, hook
        root.setLevel(level)
        for name, each in levels.items():
            logging.getLogger(name).setLevel(each)


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class _Tell(logging.Handler):
    """Sends this process signals, once, when it tells of its first epoch."""

    def __init__(self, signals: tuple[signal.Signals, ...]):
        super().__init__()
        self._signals = signals

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch 1/"):
            signals, self._signals = self._signals, ()
            for number in signals:
                os.kill(os.getpid(), number)
