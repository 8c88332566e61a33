"""The house: imports go down only, and --help answers at once."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEXA = Path(sys.executable).parent / "nexa"


def test_imports_go_down_only() -> None:
    done = subprocess.run(
        [NEXA.parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from scripts.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "Usage: nexa" in done.stdout
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    assert loaded & {"torch", "numpy", "pydantic", "pyarrow", "pandas", "sklearn", "transformers", "yaml"} == set()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_answers_in_a_moment(arguments: list[str]) -> None:
    """The promise is 0.3 s; the best of several tries, because machines are noisy."""

    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([NEXA, *arguments], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.3


def test_every_command_shows_an_example() -> None:
    done = subprocess.run([NEXA, "--help"], capture_output=True, text=True, check=True)
    commands = re.findall(r"^  ([a-z]+) ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"prepare", "train", "evaluate", "judge", "package", "verify", "predict", "leaderboard", "doctor"} <= set(
        commands
    )
    for command in set(commands):
        text = subprocess.run([NEXA, command, "--help"], capture_output=True, text=True, check=True).stdout
        assert f"Example: nexa {command}" in text
