"""What reads the pieces of a large source: processes of this machine, or the machines of a Ray cluster.

An engine applies one function to every piece and gives the results in the order of the pieces, so what is made of them does not
depend on it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cloudpickle

from nexa_core.environment import num_cores
from nexa_core.errors import NexaError, UserError
from nexa_data.ray_driver import DONE
from nexa_data.sources.raw import Piece
from nexa_data.workers import in_order

MIB = 2**20
MAIN_BYTES, PROCESS_BYTES = 450 * MIB, 280 * MIB
"""What a large source was seen to need at most: in the process that writes, and in each that reads pieces."""

Made = tuple[Path, int]
Make = Callable[[Piece], Made]
"""Makes the file of a piece's rows; gives its path and how many lines the piece has."""


@dataclass(frozen=True)
class Means:
    """What a dataset is made with, which has no influence on what it becomes."""

    engine: Literal["local", "ray"] = "local"
    memory_limit_bytes: int | None = None

    @property
    def num_processes(self) -> int:
        """How many processes of this machine read pieces: one for each core, or as many as the memory has room for."""
        if self.memory_limit_bytes is None:
            return num_cores()
        return max(1, min(num_cores(), (self.memory_limit_bytes - MAIN_BYTES) // PROCESS_BYTES))


def make_all(make: Make, pieces: Sequence[Piece], means: Means) -> Iterator[Made]:
    """What `make` gives for each piece, in order.

    Raises:
        NexaError: a process that reads was killed.
        UserError: Ray is not installed.
    """
    return _by_ray(make, pieces) if means.engine == "ray" else in_order(make, pieces, means.num_processes)


def _by_ray(make: Make, pieces: Sequence[Piece]) -> Iterator[Made]:
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine: ray needs Ray Data, which is not installed: pip install 'ray[data]>=2.50,<3'.")
    with _driver() as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        with driver.stdin as given:
            cloudpickle.dump((make, list(pieces)), given)
        for line in driver.stdout:
            row = json.loads(line)
            if row == DONE:
                return
            if row["mistake"]:
                raise UserError(row["mistake"])
            yield Path(row["path"]), row["num_lines"]
    raise NexaError(
        f"Ray ended with exit code {driver.returncode}; what it said stands above. The same command goes on."
    )


@contextmanager
def _driver() -> Iterator["subprocess.Popen[bytes]"]:
    """The process of `ray_driver`, which is gone when the block ends."""
    telling = {"RAY_USAGE_STATS_ENABLED": "0"}  # it would tell its makers
    environment = {**telling, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "nexa_data.ray_driver"]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        yield driver
    finally:
        driver.terminate()
        driver.wait()
