"""A search's record as a file of JSON lines; trials are held by locks on files beside it.

Both vanish with the process that had them, so that a killed worker's trial is free at once. Nodes share a search through a
file system whose locks reach all of them (NFS 4, Lustre with -o flock, GPFS).
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_train.tune.records import Ending, Study, Trial, Values


class FileLock:
    """A trial held by a lock on a file."""

    def __init__(self, file: TextIO):
        self._file = file

    def release(self) -> None:
        self._file.close()


def lock_trial(folder: Path, number: int) -> FileLock | None:
    """The lock of a trial; None where another process has it."""
    file = durable.open_lock(folder / "locks" / f"trial_{number:04}.lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return FileLock(file)


class JournalStorage:
    seconds_between_looks = 2.0
    seconds_to_tell = 0.0

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / "journal.jsonl"
        self._journal: durable.Journal | None = None
        self._read_bytes = 0
        self._study: Study | None = None
        self._trials: list[Trial] = []

    @property
    def place(self) -> str:
        return str(self._path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        assert self._journal is None
        self._journal = durable.Journal(self._path, waits=True)
        try:
            self._catch_up()
            yield
        finally:
            self._journal.close()
            self._journal = None

    def stamp(self) -> tuple[int, int]:
        """The file and its length; a torn last line changes it as well, and is mended by the look that follows."""
        status = self._path.stat()
        return status.st_ino, status.st_size

    def read_study(self) -> Study | None:
        return self._study

    def write_study(self, study: Study) -> None:
        self._write({"kind": "study", **study.as_json()})

    def read_trials(self) -> list[Trial]:
        return list(self._trials)

    def begin_trial(self, number: int, values: Values) -> FileLock:
        assert number == len(self._trials)
        hold = lock_trial(self._folder, number)
        assert hold is not None, "only a trial that was written down is ever held"
        self._write({"kind": "trial", "number": number, "values": values})
        return hold

    def take_over(self, number: int) -> FileLock | None:
        return lock_trial(self._folder, number)

    def end_trial(self, number: int, ending: Ending) -> None:
        if self._trials[number].ending is None:
            self._write({"kind": "end", "number": number, **ending.as_json()})

    def close(self) -> None:
        pass

    def _write(self, record: dict[str, Any]) -> None:
        assert self._journal is not None, "only inside `locked`"
        self._journal.append([record])
        self._catch_up()

    def _catch_up(self) -> None:
        """Read what was added since: lines are never changed."""
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                self._apply(line)
                self._read_bytes += len(line)

    def _apply(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            kind = record.pop("kind")
            if kind == "study":
                self._study = Study.from_json(record)
            elif kind == "trial":
                assert record["number"] == len(self._trials)
                self._trials.append(Trial(**record))
            else:
                number = record.pop("number")
                self._trials[number] = Trial(number, self._trials[number].values, Ending.from_json(record))
        except (ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self._path} is damaged at byte {self._read_bytes}: {error}. Restore it, or begin another study: "
                "--override tune.study=<name>"
            ) from None
