"""Where a search's record is kept: the one protocol of the journal file and of PostgreSQL."""

from contextlib import AbstractContextManager
from typing import Protocol

from nexa_core.config.tune import Tune
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_train.tune.records import Ending, Study, Trial, Values


class Hold(Protocol):
    """A trial that is this worker's alone, for as long as it lives or until it lets go."""

    def release(self) -> None: ...


class Storage(Protocol):
    """What several workers share. Reading and writing happen inside `locked`, one worker at a time.

    A trial that was begun, and whose worker is gone, can be held by the next one: none is lost, and none is run twice.
    """

    seconds_between_looks: float
    """How long a worker that waits goes without a look at whether others are gone, at most."""
    seconds_to_tell: float
    """How long others have to be looked at to tell whether they are gone; 0 where one look tells."""

    def stamp(self) -> object:
        """Another one after each thing that was written, told without the lock; None where only reading tells."""

    def locked(self) -> AbstractContextManager[None]: ...

    def read_study(self) -> Study | None:
        """None before there is one."""

    def write_study(self, study: Study) -> None: ...

    def read_trials(self) -> list[Trial]:
        """All trials by number, none left out."""

    def begin_trial(self, number: int, values: Values) -> Hold | None:
        """Write down a new trial, the next number, and hold it; None where another worker has it after all."""

    def take_over(self, number: int) -> Hold | None:
        """Hold a trial that has not ended; None where another worker does."""

    def end_trial(self, number: int, ending: Ending) -> None:
        """Write down a trial's end; the first one counts."""

    def close(self) -> None: ...

    @property
    def place(self) -> str:
        """Where it is, for people."""


def join(storage: Storage, study: Study) -> Study:
    """The search that the storage holds, begun now where there is none.

    Raises:
        UserError: it is another one, naming what differs.
    """
    with storage.locked():
        found = storage.read_study()
        if found is None:
            storage.write_study(study)
            return study
    differing = _differing(found.as_json(), {**study.as_json(), "num_threads": found.num_threads})
    if differing:
        raise UserError(
            f"Study '{study.name}' ({storage.place}) was begun with other settings: {'; '.join(differing)}. Put them back, or "
            "begin another one: --override tune.study=<name>"
        )
    return found


def _differing(ours: dict[str, object], theirs: dict[str, object], above: str = "") -> list[str]:
    lines = []
    for key in sorted({*ours, *theirs}):
        before, now = ours.get(key), theirs.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differing(before, now, f"{above}{key}.")
        elif before != now:
            lines.append(f"{above}{key} was {before!r} and is {now!r}")
    return lines


def open_storage(settings: Tune, layout: Layout, study: str) -> Storage:
    """The storage that the settings name, for one study."""
    folder = layout.artifacts / "tune" / study
    if settings.storage is None:
        from nexa_train.tune.journal import JournalStorage

        return JournalStorage(folder)
    from nexa_train.tune.database import DatabaseStorage  # imports SQLAlchemy

    return DatabaseStorage(settings.storage, study, folder, lease_seconds=settings.lease_seconds)
