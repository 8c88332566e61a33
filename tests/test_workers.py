"""Work in other processes: in order, and no further ahead than somebody takes it."""

import os
import signal
import time
from pathlib import Path

import pytest

from nexa_core.errors import NexaError
from nexa_data.workers import AHEAD, in_order


def doubled(number: int) -> int:
    return 2 * number


def marked(path: Path) -> str:
    path.write_text("begun")
    return path.name


def killed(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_come_in_order(num_processes: int) -> None:
    assert list(in_order(doubled, range(50), num_processes)) == list(range(0, 100, 2))


def test_no_more_is_begun_than_is_taken(tmp_path: Path) -> None:
    results = in_order(marked, (tmp_path / str(number) for number in range(40)), 2)
    assert next(results) == "0"
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= 2 * AHEAD
    assert len(list(results)) == 39


def test_a_killed_process_is_told() -> None:
    with pytest.raises(NexaError, match="the same command goes on"):
        list(in_order(killed, range(4), 2))
