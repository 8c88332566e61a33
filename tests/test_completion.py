"""Completion behind the Tab key: in a real bash on a terminal of its own, and with little to load, for somebody waits."""

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.completion import complete_checkpoint, complete_config

NEXA = Path(sys.executable).parent / "nexa"
RUNS = ("digits_20260102_030405", "digits_20260103_030405", "news_20260101_000000")
MOST_MODULES = 300
PROMPT = "ready>"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs, an evaluation and configs, whose laboratory `.env.local` names."""
    for name in RUNS:
        (tmp_path / "lab" / "artifacts" / "runs" / "a" / name).mkdir(parents=True)
    evaluation = tmp_path / "lab" / "artifacts" / "runs" / "a" / "news_eval_20260104_000000"
    evaluation.mkdir()
    (evaluation / "lineage.json").write_text('{"kind": "evaluation"}')
    (tmp_path / ".env.local").write_text("NEXA_ROOT=lab\n")
    (tmp_path / "configs").mkdir()
    for name in ("default.yaml", "digits.yaml", "notes.txt"):
        (tmp_path / "configs" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEXA_ROOT", raising=False)
    return tmp_path


class Terminal:
    """An interactive bash that has the completion, as `nexa --show-completion` prints it."""

    def __init__(self, screen: int):
        self._screen = screen
        self._read_until(PROMPT)

    def press(self, keys: str, *, until: str) -> str:
        """What the screen shows after these keys, once it shows this text."""
        os.write(self._screen, keys.encode())
        return self._read_until(until)

    def _read_until(self, text: str, seconds: float = 20) -> str:
        shown, deadline = "", time.monotonic() + seconds
        while text not in shown:
            ready, _, _ = select.select([self._screen], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} was never shown:\n{shown}"
            shown += os.read(self._screen, 4096).decode()
        return shown


@contextmanager
def open_bash(folder: Path) -> Iterator[Terminal]:
    start = folder / "start.sh"
    start.write_text(
        f"PATH={shlex.quote(str(NEXA.parent))}:$PATH\nPS1='{PROMPT} '\nbind 'set show-all-if-ambiguous on'\n"
        "bind 'set enable-bracketed-paste off'\nbind 'set page-completions off'\nbind 'set completion-query-items 0'\n"
        "source <(nexa --show-completion)\n"
    )
    screen, theirs = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", str(start), "-i"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(screen)
    finally:
        bash.kill()
        bash.wait()
        os.close(screen)


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ("nexa ru\t", "runs "),
        ("nexa runs s\t", "stop"),
        ("nexa runs show \t", "news_20260101_000000"),
        ("nexa runs show ne\t", "news_20260101_000000 "),
        ("nexa runs --state run\t", "running "),
        ("nexa train --config con\tdi\t", "configs/digits.yaml "),
        ("nexa storage move news_20260101_000000 --to du\t", "durable "),
    ],
)
def test_tab_completes_in_bash(desk: Path, keys: str, shown: str) -> None:
    with open_bash(desk) as bash:
        bash.press(keys, until=shown)


def complete(*words: str, shell: str = "bash") -> list[str]:
    """What the shell is offered for the last word."""
    line = " ".join(words)
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {**os.environ, **asked, "_NEXA_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([NEXA], env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout.splitlines()


def test_each_place_offers_what_fits_there(desk: Path) -> None:
    assert {"prepare", "train", "runs", "clean"} <= set(complete("nexa", ""))
    assert complete("nexa", "runs", "show", "") == [*RUNS[1::-1], RUNS[2]]  # the newest first
    assert complete("nexa", "train", "--config", "configs/") == ["configs/default.yaml", "configs/digits.yaml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_and_are_answered(desk: Path, shell: str) -> None:
    environment = {**os.environ, "_NEXA_COMPLETE": f"source_{shell}"}
    script = subprocess.run([NEXA], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"_NEXA_COMPLETE=complete_{shell}" in script
    offered = "\n".join(complete("nexa", "runs", "show", "", shell=shell))
    assert all(name in offered for name in RUNS)


def test_a_folder_that_is_the_only_choice_is_opened(desk: Path) -> None:
    """A shell puts a space behind the only choice, as behind a finished word."""
    assert complete_config("con") == ["configs/default.yaml", "configs/digits.yaml"]
    (desk / "empty").mkdir()
    assert complete_config("em") == ["empty/"]
    assert complete_config("nowhere/") == []


def test_checkpoints_are_those_that_are_shown_or_below_a_folder(desk: Path) -> None:
    for folder in (desk / "artifacts" / "checkpoints", desk / "artifacts" / "runs" / "a" / "x_1" / "checkpoints"):
        folder.mkdir(parents=True)
        for name in ("best.pt", "last.pt", "notes.txt"):
            (folder / name).write_text("")
    assert complete_checkpoint("") == ["artifacts/checkpoints/best.pt", "artifacts/checkpoints/last.pt"]
    assert complete_checkpoint("artifacts/ru") == ["artifacts/runs/a/"]
    runs = "artifacts/runs/a/x_1/checkpoints"
    assert complete_checkpoint("artifacts/runs/a/x_1/") == [f"{runs}/best.pt", f"{runs}/last.pt"]


@pytest.mark.parametrize("words", ["nexa ", "nexa runs show ", "nexa train --config "])
def test_somebody_waits_for_it_so_little_is_imported(desk: Path, words: str) -> None:
    environment = {
        **os.environ, "_NEXA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-X", "importtime", NEXA], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout
    imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "scripts.completion" in imported
    assert not set(imported) & {"torch", "numpy", "pandas", "pyarrow", "pydantic", "yaml", "rich"}
    assert len(imported) < MOST_MODULES
