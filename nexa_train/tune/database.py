"""A search's record in PostgreSQL, in Optuna's own tables, where its dashboard finds the trials.

Workers that share the laboratory's folder know by a lock on a file whether another one lives, as with the journal. Of others
they know it by a sign of life, which is counted up in the trial's owner: who has not seen it change for a lease, with the
server there all the time, takes the trial over. Should two train the same one after all, they find the same, and the first
end counts.

A server that restarts is waited for. What was under way is then done again, after a look at what became of it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from nexa_core import durable
from nexa_core.errors import NodeError, UserError
from nexa_train.tune.journal import FileLock, lock_trial
from nexa_train.tune.records import STATES, Ending, Study, Trial, Values
from nexa_train.tune.space import as_parameters, distributions, read_space

logger = logging.getLogger(__name__)

T = TypeVar("T")

RECORD = "nexa"
"""The attribute that holds what we write down, of the study and of each trial."""
ENDING = "nexa_ending"
OWNER = "nexa_owner"
PATIENCE_SECONDS = 300.0
"""How long a server may be away."""
SECONDS_BETWEEN_TRIES = 1.0
BEATS_A_LEASE = 4
MOST_SECONDS_BETWEEN_LOOKS = 2.0
LOOKS_A_LEASE = 8
"""At least: who looks less often than twice a lease cannot tell a worker that is gone from a server that was away."""
NOT_THERE = (SQLAlchemyError, StorageInternalError)
CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    # And the server notices a node without power, whose lock it holds else for hours.
    "options": "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}
"""How soon either side notices that the other one is gone."""


class Lease:
    """A trial held by a lock on a file, and by a sign of life for those who do not see that."""

    def __init__(self, lock: FileLock, beat: Callable[[int], bool], *, every_seconds: float):
        self._lock, self._beat, self._every = lock, beat, every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="sign of life", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        self._lock.release()

    def _live(self) -> None:
        count = 1
        while not self._over.wait(self._every):
            try:
                if not self._beat(count):
                    return
            except NOT_THERE:  # the server is away; those who watch cannot look either
                continue
            count += 1


class DatabaseStorage:
    def __init__(self, url: str, study: str, folder: Path, *, lease_seconds: float):
        """Raises UserError: no server answers there."""
        self._name, self._folder, self._lease = study, folder, lease_seconds
        self._url = url
        self.seconds_between_looks = min(MOST_SECONDS_BETWEEN_LOOKS, lease_seconds / LOOKS_A_LEASE)
        self.seconds_to_tell = lease_seconds + 2 * self.seconds_between_looks
        self._key = int.from_bytes(sha256(f"nexa {study}".encode()).digest()[:8], "big", signed=True)
        self._connection: Connection | None = None
        self._seen: dict[int, tuple[str, float, float]] = {}
        """Of each trial of another worker: its sign of life, since when that has not changed, and when it was last seen."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._tables = _open_tables(url)
        self._storage = get_storage(self._tables)
        self._study_id: int | None = None
        self._study: Study | None = None

    @property
    def place(self) -> str:
        return f"{self._url}, study {self._name}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self._patiently(lambda: None)
        try:
            yield
        finally:
            self._unlock()

    def stamp(self) -> None:
        """A question to the server costs what reading does."""

    def read_study(self) -> Study | None:
        if self._study is None:
            self._study = self._patiently(self._read_study)
        return self._study

    def write_study(self, study: Study) -> None:
        self._patiently(lambda: self._write_study(study))
        self._study = study

    def read_trials(self) -> list[Trial]:
        return [_trial(frozen) for frozen in self._patiently(self._read_frozen)]

    def begin_trial(self, number: int, values: Values) -> Lease | None:
        return self._patiently(lambda: self._begin(number, values))

    def take_over(self, number: int) -> Lease | None:
        return self._patiently(lambda: self._take_over(self._read_frozen()[number]))

    def end_trial(self, number: int, ending: Ending) -> None:
        self._patiently(lambda: self._end(self._read_frozen()[number], ending))

    def close(self) -> None:
        self._tables.engine.dispose()

    def _read_study(self) -> Study | None:
        try:
            study_id = self._storage.get_study_id_from_name(self._name)
        except KeyError:
            return None
        record = self._storage.get_study_user_attrs(study_id).get(RECORD)
        self._study_id = study_id
        return None if record is None else Study.from_json(record)

    def _write_study(self, study: Study) -> None:
        direction = StudyDirection.MAXIMIZE if study.is_maximized else StudyDirection.MINIMIZE
        with contextlib.suppress(DuplicatedStudyError):  # a worker was killed before it could say what it is
            self._storage.create_new_study([direction], self._name)
        self._study_id = self._storage.get_study_id_from_name(self._name)
        self._read_frozen()  # of a study that is not ours there are trials already
        self._storage.set_study_user_attr(self._study_id, RECORD, study.as_json())

    def _read_frozen(self) -> list[FrozenTrial]:
        """Our trials by number. One whose writer was told nothing of its success may be there twice: the first counts."""
        assert self._study_id is not None
        found: dict[int, FrozenTrial] = {}
        for frozen in sorted(
            self._storage.get_all_trials(self._study_id, deepcopy=False), key=lambda each: each.number
        ):
            if RECORD not in frozen.user_attrs:
                raise UserError(
                    f"Study '{self._name}' in {self._url} has trials of another program; use another tune.study."
                )
            found.setdefault(frozen.user_attrs[RECORD]["number"], frozen)
        return [found[number] for number in range(len(found))]

    def _begin(self, number: int, values: Values) -> Lease | None:
        there = self._read_frozen()
        if number < len(there):  # written before the server went away: by us, or by another worker since
            return self._take_over(there[number])
        lock = lock_trial(self._folder, number)
        if lock is None:
            return None
        assert self._study is not None
        assert self._study_id is not None
        space = read_space(self._study.space)
        owner = self._new_owner()
        trial = create_trial(
            state=TrialState.RUNNING,
            params=as_parameters(space, values),
            distributions=distributions(space),
            user_attrs={RECORD: {"number": number, "values": values}, OWNER: owner},
        )
        try:
            trial_id = self._storage.create_new_trial(self._study_id, trial)
        except NOT_THERE:
            lock.release()
            raise
        return self._hold(lock, trial_id, owner)

    def _take_over(self, frozen: FrozenTrial) -> Lease | None:
        if frozen.state.is_finished() or not self._is_left(frozen):
            return None
        lock = lock_trial(self._folder, frozen.user_attrs[RECORD]["number"])
        if lock is None:
            return None
        owner = self._new_owner()
        try:
            self._storage.set_trial_user_attr(frozen._trial_id, OWNER, owner)
        except NOT_THERE:
            lock.release()
            raise
        return self._hold(lock, frozen._trial_id, owner)

    def _hold(self, lock: FileLock, trial_id: int, owner: dict[str, Any]) -> Lease:
        def beat(count: int) -> bool:
            """False where another worker has taken over."""
            now = self._tables.get_trial(trial_id)
            if now.state.is_finished() or now.user_attrs[OWNER]["token"] != owner["token"]:
                return False
            with contextlib.suppress(UpdateFinishedTrialError):
                self._tables.set_trial_user_attr(trial_id, OWNER, {**owner, "beat": count})
            return True

        return Lease(lock, beat, every_seconds=self._lease / BEATS_A_LEASE)

    def _is_left(self, frozen: FrozenTrial) -> bool:
        """Whether a trial's worker is gone, or may be asked for by its lock."""
        owner = frozen.user_attrs[OWNER]
        if owner["locks"] == self._locks_id():
            return True
        now, shown = time.monotonic(), f"{owner['token']} {owner['beat']}"
        before, since, last = self._seen.get(frozen.number, ("", now, now))
        if before != shown or now - last > self._lease / 2:  # while nobody looked, the server may have been away
            since = now
        self._seen[frozen.number] = (shown, since, now)
        return now - since > self._lease

    def _new_owner(self) -> dict[str, Any]:
        return {"locks": self._locks_id(), "token": uuid4().hex, "beat": 0}

    def _locks_id(self) -> str:
        """The same for two workers where they see each other's locks; a copy of the folder is another place."""
        path = self._folder / "locks" / "id"
        if not path.exists():
            durable.write_text(path, uuid4().hex)
        return f"{path.read_text(encoding='utf-8')} {path.stat().st_ino}"

    def _end(self, frozen: FrozenTrial, ending: Ending) -> None:
        if frozen.state.is_finished():
            return
        trial_id = frozen._trial_id
        for step, value in enumerate(ending.reports, start=1):
            if step not in frozen.intermediate_values:
                self._storage.set_trial_intermediate_value(trial_id, step, value)
        self._storage.set_trial_user_attr(trial_id, ENDING, ending.as_json())
        values = None if ending.value is None else [ending.value]
        self._storage.set_trial_state_values(trial_id, STATES[ending.state], values)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do `work` inside the lock, which is taken where it is not there or was lost; again where the server went away.

        Raises:
            NodeError: it does not come back.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._lock()
                return work()
            except NOT_THERE as error:
                self._unlock()
                if time.monotonic() > until:
                    raise NodeError(
                        f"{self._url} has not answered for {PATIENCE_SECONDS:.0f} s: {_first_line(error)} "
                        "The same command goes on when it is back."
                    ) from None
                logger.warning("%s does not answer; trying again: %s", self._url, _first_line(error))
                time.sleep(SECONDS_BETWEEN_TRIES)

    def _lock(self) -> None:
        """The server lets go of the lock when this process ends, however it does."""
        if self._connection is None:
            connection = self._tables.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._connection = connection
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": self._key})
        else:
            self._connection.execute(text("select 1"))

    def _unlock(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(*NOT_THERE):
            try:
                connection.execute(text("select pg_advisory_unlock(:key)"), {"key": self._key})
            except NOT_THERE:
                connection.invalidate()
        with contextlib.suppress(*NOT_THERE):
            connection.close()


def _open_tables(url: str) -> RDBStorage:
    """Optuna's storage; its tables are made where they are not there."""
    for tries_left in reversed(range(5)):
        try:
            return RDBStorage(
                f"postgresql+psycopg://{url.partition('://')[2]}",
                engine_kwargs={"pool_pre_ping": True, "connect_args": CONNECTION},
            )
        except NOT_THERE as error:
            if "connect" in str(error).lower() or not tries_left:
                raise UserError(
                    f"No use of tune.storage {url}: {_first_line(error)} Is the server there, and the database and user in it? "
                    "The password comes from PGPASSWORD or ~/.pgpass."
                ) from None
            time.sleep(SECONDS_BETWEEN_TRIES / 2)  # another worker makes the tables at this moment
    raise AssertionError


def _trial(frozen: FrozenTrial) -> Trial:
    record = frozen.user_attrs[RECORD]
    ending = frozen.user_attrs.get(ENDING) if frozen.state.is_finished() else None
    return Trial(record["number"], record["values"], None if ending is None else Ending.from_json(ending))


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line for line in str(getattr(cause, "orig", cause)).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".") + "."
