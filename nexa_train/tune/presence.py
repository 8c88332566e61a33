"""Which commands work on a study now: each says so in a file that it has locked, so that the search can be stopped."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from nexa_core import durable
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
