"""Which commands work on a study now: each says so in a file that it has locked, so that the search can be stopped."""

import contextlib
import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from nexa_core import durable
from nexa_core.errors import Preempted
from nexa_core.holder import Holder, Note, read_note, this_process


@contextlib.contextmanager
def taking_part(folder: Path) -> Iterator[None]:
    """Be known as working on the study of this folder while the block lasts; a killed process is known to be gone."""
    me = this_process()
    path = folder / "commands" / f"{me.host}_{me.pid}.lock"
    with durable.open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Note(file, me).write(None)
        try:
            yield
        finally:
            durable.remove(path)


@contextlib.contextmanager
def ended_when_told() -> Iterator[None]:
    """Between trials, too, SIGTERM is an ending that is said; while one is trained it is the run that hears it."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Preempted("told to end between two trials; the same command goes on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Preempted:  # it ends already
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


def forget_gone(folder: Path) -> None:
    """Remove what commands of this machine left that were killed."""
    for path in (folder / "commands").glob("*.lock"):
        if (holder := read_note(path)) is not None and holder.is_here and not holder.is_alive:
            durable.remove(path)


def commands_of(folder: Path) -> list[Holder]:
    """Those that live: of this machine by their numbers, of others by the locks."""
    found = [(path, read_note(path)) for path in sorted((folder / "commands").glob("*.lock"))]
    return [holder for path, holder in found if holder and (holder.is_alive if holder.is_here else _is_locked(path))]


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
