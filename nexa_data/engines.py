"""What reads the pieces of a large source: processes of this machine, or the machines of a Ray cluster.

An engine applies one function to every piece and gives the results in the order of the pieces, so what is made of them does not
depend on it.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nexa_core.environment import num_cores
from nexa_core.errors import UserError
from nexa_data.sources.raw import Piece
from nexa_data.workers import in_order

logger = logging.getLogger(__name__)

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
        RuntimeError: a process that reads was killed.
        UserError: Ray is not installed.
    """
    return _by_ray(make, pieces) if means.engine == "ray" else in_order(make, pieces, means.num_processes)


def _by_ray(make: Make, pieces: Sequence[Piece]) -> Iterator[Made]:
    with _cluster() as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        numbers = ray.data.range(len(pieces), override_num_blocks=len(pieces))
        for row in numbers.map(_row_maker(make, pieces)).iter_rows():
            if row["mistake"]:
                raise UserError(row["mistake"])
            yield Path(row["path"]), row["num_lines"]


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, joined to the cluster of RAY_ADDRESS or to a new one of this machine; left as it was found."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(
            "engine: ray needs Ray Data, which is not installed: pip install 'ray[data]>=2.50,<3'."
        ) from None
    if ray.is_initialized():
        yield ray
        return
    alone = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False, "num_cpus": num_cores()}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level=logging.WARNING, **alone)  # type: ignore[arg-type]
    try:
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end what comes after it without a checkpoint


def _row_maker(make: Make, pieces: Sequence[Piece]) -> Callable[[dict[str, int]], dict[str, str | int]]:
    """`make` as Ray Data calls it: with a row that says which piece. Ray would wrap a user's mistake in its own."""

    def row_of(row: dict[str, int]) -> dict[str, str | int]:
        try:
            path, num_lines = make(pieces[row["id"]])
        except UserError as error:
            return {"path": "", "num_lines": 0, "mistake": str(error)}
        return {"path": str(path), "num_lines": num_lines, "mistake": ""}

    return row_of
