"""Who writes to a run: a lock that one process has, what it says of itself, and how the last one ended."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from nexa_core import durable
from nexa_core.errors import NexaError, Stopped, UserError
from nexa_core.runs import RunFolder

SECONDS_BETWEEN_NOTES = 2.0
NOTE_BYTES = 1024
PROCESSES = Path("/proc")
PATIENCE_SECONDS = 1.0
"""Who asks whether a run is held has its lock for an instant."""


@dataclass(frozen=True)
class Holder:
    """A process that writes, or wrote, to a run."""

    pid: int
    host: str
    boot: str
    """What tells one start of a machine from another, and machines of one name apart."""
    started: int
    """When the process began, in the system's own units: another one of the same number began at another time."""
    num_steps: int | None = None
    """What the run is to come to."""
    config: str | None = None
    """The file that it was started with."""
    step: int | None = None
    """How far it had come a few seconds ago, or before it was killed."""

    @property
    def is_here(self) -> bool:
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def is_alive(self) -> bool:
        """Whether this very process is there still, as far as the system says; only where `is_here`."""
        return started_at(self.pid) == self.started or not PROCESSES.is_dir()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to this very process and to no other; nothing where it is gone.

        Raises:
            UserError: it is not on this machine.
        """
        if not self.is_here:
            raise UserError(f"Process {self.pid} that writes the run is on {self.host}; stop it there.")
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)  # from here on the number can't become another process's
            try:
                if self.is_alive:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


@dataclass(frozen=True)
class Ending:
    """How the last process that wrote to an unfinished run ended, where it could say so."""

    at: str
    state: str
    """What the run is now: `NexaError.leaves_run`."""
    said: str


class Held(UserError):
    """Another process writes to the run, or looks at it; that passes."""


class Note:
    """What a holder says of itself, in the file that it has locked."""

    def __init__(self, file: TextIO, holder: Holder):
        self._file, self._holder = file, holder
        self._written_at = -SECONDS_BETWEEN_NOTES
        file.truncate(0)

    def note(self, step: int) -> None:
        """Say how far the run has come, now and then."""
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_NOTES:
            self.write(step)

    def write(self, step: int | None) -> None:
        self._written_at = time.monotonic()
        text = json.dumps(asdict(replace(self._holder, step=step))).ljust(NOTE_BYTES)
        os.pwrite(self._file.fileno(), text.encode(), 0)  # of one length, and so never torn for who reads it


@contextlib.contextmanager
def hold(run: RunFolder, *, num_steps: int | None = None, config: str | None = None) -> Iterator[Note]:
    """Keep every other process from writing to the run while the block lasts; a killed holder's lock is free at once.

    Raises:
        Held: another process has it.
    """
    with _taken(run) as lock:
        note = Note(lock, replace(this_process(), num_steps=num_steps, config=config))
        note.write(None)
        durable.remove(_ending_path(run))
        try:
            yield note
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk, which may be what ended it
                durable.write_json(_ending_path(run), asdict(_describe(error)))
            raise


def this_process() -> Holder:
    return Holder(os.getpid(), socket.gethostname(), _boot(), started_at(os.getpid()) or 0)


def read_holder(run: RunFolder) -> Holder | None:
    """The process that wrote to the run last; None where none said so."""
    return read_note(_lock_path(run))


def read_note(path: Path) -> Holder | None:
    """What a process has said of itself in a file that it locked; None where none did."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def read_ending(run: RunFolder) -> Ending | None:
    try:
        return Ending(**json.loads(_ending_path(run).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def is_held(run: RunFolder, holder: Holder | None) -> bool:
    """Whether a process writes to the run now: of this machine by its number, of another by the lock."""
    if holder is not None and holder.is_here and not holder.is_alive:
        return False
    with at_rest(run) as rests:
        return not rests


@contextlib.contextmanager
def at_rest(run: RunFolder, *, alone: bool = False) -> Iterator[bool]:
    """Whether no process writes to the run; if so, none begins to while the block lasts. Nothing is written.

    Args:
        alone: nor does another process look, for what it would do must not be done twice.
    """
    kind, mode = (fcntl.LOCK_EX, "r+") if alone else (fcntl.LOCK_SH, "r")
    with contextlib.ExitStack() as held:
        try:
            fcntl.flock(held.enter_context(_lock_path(run).open(mode)), kind | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass  # none ever did
        except BlockingIOError:
            yield False
            return
        yield True


def ancestors_of(pid: int) -> Iterator[int]:
    """The process that started one of this machine, the one that started that, and so on."""
    while (numbers := _numbers_of(pid)) is not None and (pid := int(numbers[1])) > 1:
        yield pid


def started_at(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none, or the system does not say."""
    numbers = _numbers_of(pid)
    return None if numbers is None or numbers[0] == "Z" else int(numbers[19])


def _numbers_of(pid: int) -> list[str] | None:
    """The system's line on a process, from its state on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()  # the name before it may hold anything


def _taken(run: RunFolder) -> TextIO:
    """The locked file; of this name also when it is locked, for who removes a run holds its lock."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        lock = open(os.open(_lock_path(run), os.O_RDWR | os.O_CREAT, 0o666), "r+")  # noqa: SIM115 -- the caller closes it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if durable.is_named(lock, _lock_path(run)):
                return lock
            lock.close()
        except BlockingIOError:
            lock.close()
            if time.monotonic() > until:
                raise Held(
                    f"Run {run.run_id} is being written by another process; wait for it or stop it: "
                    f"nexa runs stop {run.run_id}"
                ) from None
            time.sleep(0.05)


def _describe(error: BaseException) -> Ending:
    kind = (
        type(error) if isinstance(error, NexaError) else Stopped if isinstance(error, KeyboardInterrupt) else NexaError
    )
    said = str(error) if isinstance(error, NexaError) else f"{type(error).__name__}: {error}".rstrip(": ")
    return Ending(datetime.now(UTC).isoformat(timespec="seconds"), kind.leaves_run, said)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _lock_path(run: RunFolder) -> Path:
    return run.path / "run.lock"


def _ending_path(run: RunFolder) -> Path:
    return run.path / "ending.json"
