"""Real processes that share a real store on loopback: ranks for tests to plant faults in."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import TCPStore

from nexa_core.command import run_to_exit
from nexa_train.distributed.world import World

# Children start as forks of a process that has done the imports: in a moment, and with none of this process's threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "nexa_train.distributed.collectives", "nexa_train.distributed.heartbeat", "nexa_train.distributed.facts"]
)

Work = Callable[..., None]


class Ranks:
    """Runs `work(world, store, *arguments)` in each of some ranks; their output lies in `folder`.

    The store is rank 0's, or this process's where `launcher_has_store`, as with torch elastic.
    """

    def __init__(
        self,
        folder: Path,
        work: Work,
        *arguments: Any,
        size: int = 2,
        absent: Iterable[int] = (),
        launcher_has_store: bool = False,
    ):
        self.folder = folder
        port = free_port()
        self.store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False) if launcher_has_store else None
        self.processes = {
            rank: PROCESSES.Process(
                target=_be_rank,
                args=(World(rank, size, rank, size), port, launcher_has_store, folder, work, arguments),
                daemon=True,
            )
            for rank in range(size)
            if rank not in absent
        }
        for process in self.processes.values():
            process.start()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()

    def send(self, rank: int, number: signal.Signals) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def send_to_guardian(self, rank: int, number: signal.Signals) -> None:
        pid = self.processes[rank].pid
        (guardian,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(guardian), number)

    def wait(self, *ranks: int, seconds: float = 20) -> dict[int, int | None]:
        """Exit codes of these ranks, or of all; None for one that has not ended in time."""
        until = time.monotonic() + seconds
        wanted = {rank: self.processes[rank] for rank in ranks or self.processes}
        for process in wanted.values():
            process.join(max(0.0, until - time.monotonic()))
        return {rank: process.exitcode for rank, process in wanted.items()}

    def said(self, rank: int) -> str:
        return (self.folder / f"rank{rank}.log").read_text()

    def seconds(self, rank: int) -> float:
        """How long the work took that a rank has ended by itself, without the start of its process."""
        return float((self.folder / f"rank{rank}.seconds").read_text())

    def wait_until_said(self, rank: int, text: str, seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        path = self.folder / f"rank{rank}.log"
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < until, f"rank {rank} never said {text!r}"
            time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _be_rank(world: World, port: int, launcher_has_store: bool, folder: Path, work: Work, arguments: Any) -> None:
    log = os.open(folder / f"rank{world.rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
    holds_store = world.is_main and not launcher_has_store
    store = TCPStore("127.0.0.1", port, None, holds_store, timedelta(seconds=20), wait_for_workers=False)
    began = time.monotonic()
    try:
        run_to_exit(lambda: work(world, store, *arguments))
    finally:
        (folder / f"rank{world.rank}.seconds").write_text(str(time.monotonic() - began))
