"""Letting the training go first: while it goes on, who sends its record gets the processor time that nobody else wants."""

import os
import time
from contextlib import suppress
from pathlib import Path

LEAST = 19
PROCESSES = Path("/proc")
TRIES = 5
SECONDS_BETWEEN_TRIES = 0.11
"""The kernel takes one change of any session's niceness in a tenth of a second."""


def give_way() -> None:
    """Have this process, and what it begins from now on, wait for all others."""
    os.nice(LEAST)
    nice_sessions(os.getpid(), LEAST)


def nice_sessions(pid: int, niceness: int) -> None:
    """Set the niceness, from 0 to 19, of the session of a process and of the sessions that it has begun.

    Linux may share the processor between sessions first, and then a process's own niceness counts only within one. A
    tracker's client begins some in sessions of their own. Unlike a process's, it may be lowered again by anyone.
    Source: man 7 sched, the autogroup feature.
    """
    for each in (pid, *_children(pid)):
        with suppress(OSError):  # gone, or a kernel without it
            _nice_session(PROCESSES / str(each) / "autogroup", niceness)


def _nice_session(path: Path, niceness: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        for _ in range(TRIES):
            with suppress(BlockingIOError):
                os.write(fd, str(niceness).encode())
                return
            time.sleep(SECONDS_BETWEEN_TRIES)
    finally:
        os.close(fd)


def _children(pid: int) -> list[int]:
    found = []
    for path in PROCESSES.glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = path.read_text().rpartition(")")[2].split()[1]  # the name before it may hold anything
            if int(parent) == pid:
                found.append(int(path.parent.name))
    return found
