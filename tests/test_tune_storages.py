"""What every storage of a search promises, on the journal file and on a real PostgreSQL."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexa_core.errors import NodeError, UserError
from nexa_train.tune import database
from nexa_train.tune.database import DatabaseStorage
from nexa_train.tune.journal import JournalStorage
from nexa_train.tune.records import Ending, Study
from nexa_train.tune.storage import Storage, join
from tests.postgres import Postgres
from tests.studies import end_of

Open = Callable[[], Storage]

SPACE = {
    "a": {"name": "uniform", "low": 0.0, "high": 1.0, "points": None},
    "b": {"name": "choice", "values": [[1], None]},
}
STUDY = Study("s", "random", 0, 4, "val_loss", "minimize", SPACE, None, {"training": {"epochs": 3}}, "", 1)
VALUES = {"a": 0.1 + 0.2, "b": [1]}
COMPLETE = Ending(
    "complete", 1 / 3, (1.5, 1 / 3), run_id="r", run_dir="d", notes={"completed_rung_0": 1.5}, seconds=1.25
)


@pytest.fixture(params=["journal", "postgresql"])
def open_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same storage again and again, as each worker does."""
    opened: list[Storage] = []

    def journal() -> Storage:
        return JournalStorage(tmp_path / "study")

    def postgresql() -> Storage:
        server: Postgres = request.getfixturevalue("postgres")
        name = f"{tmp_path.name}"
        return DatabaseStorage(server.url, name, tmp_path / "study", lease_seconds=2.0)

    def open_it() -> Storage:
        opened.append(journal() if request.param == "journal" else postgresql())
        return opened[-1]

    if request.param == "postgresql":
        request.getfixturevalue("postgres")
    yield open_it
    for each in opened:
        each.close()


def begin(storage: Storage, number: int = 0) -> Any:
    with storage.locked():
        hold = storage.begin_trial(number, VALUES)
    assert hold is not None
    return hold


def take(storage: Storage, number: int = 0) -> Any:
    with storage.locked():
        return storage.take_over(number)


def test_what_was_written_is_read_by_another_worker(open_storage: Open) -> None:
    one, other = open_storage(), open_storage()
    with one.locked():
        assert one.read_study() is None
    assert join(one, STUDY) == STUDY
    assert join(other, STUDY) == STUDY
    begin(one, 0)
    begin(one, 1)
    with one.locked():
        one.end_trial(0, COMPLETE)
        one.end_trial(1, Ending("failed", None, reason="ünlucky"))
    begin(other, 2)
    for storage in (one, other, open_storage()):
        join(storage, STUDY)
        with storage.locked():
            trials = storage.read_trials()
        assert [trial.number for trial in trials] == [0, 1, 2]
        assert [trial.values for trial in trials] == [VALUES] * 3
        assert [trial.ending for trial in trials] == [COMPLETE, Ending("failed", None, reason="ünlucky"), None]


def test_another_study_is_refused(open_storage: Open) -> None:
    join(open_storage(), STUDY)
    with pytest.raises(UserError, match=r"config\.training\.epochs was 3 and is 4; seed was 0 and is 7") as refused:
        changed = {**STUDY.as_json(), "seed": 7, "config": {"training": {"epochs": 4}}}
        join(open_storage(), Study.from_json(changed))
    assert "tune.study" in str(refused.value)


def test_a_trial_is_one_workers_until_it_lets_go(open_storage: Open) -> None:
    one, other = open_storage(), open_storage()
    for storage in (one, other):
        join(storage, STUDY)
    hold = begin(one)
    assert take(other) is None
    hold.release()
    again = take(other)
    assert again is not None
    assert take(one) is None
    again.release()


def test_the_first_end_counts(open_storage: Open) -> None:
    storage = open_storage()
    join(storage, STUDY)
    begin(storage)
    with storage.locked():
        storage.end_trial(0, COMPLETE)
        storage.end_trial(0, Ending("failed", None, reason="late"))
        assert [trial.ending for trial in storage.read_trials()] == [COMPLETE]


def test_a_killed_workers_trial_is_free_at_once(open_storage: Open) -> None:
    child = os.fork()
    if child == 0:
        try:
            storage = open_storage()
            join(storage, STUDY)
            hold = begin(storage)
            time.sleep(60)
            hold.release()
        finally:
            os._exit(1)
    storage = open_storage()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with storage.locked():
            if storage.read_study() is not None and storage.read_trials():
                break
        time.sleep(0.02)
    assert take(storage) is None
    os.kill(child, signal.SIGKILL)
    assert end_of(child) is None
    began = time.monotonic()
    assert take(storage) is not None
    assert time.monotonic() - began < 1.0  # no lease is waited for


def test_a_killed_worker_leaves_the_others_the_lock(open_storage: Open) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            storage = open_storage()
            join(storage, STUDY)
            with storage.locked():
                os.write(write, b"!")
                time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    assert end_of(child) is None
    storage = open_storage()
    with storage.locked():
        assert storage.read_study() == STUDY
        assert storage.read_trials() == []


def elsewhere(server: Postgres, name: str, folder: Path) -> DatabaseStorage:
    """A worker that does not share the laboratory's folder."""
    storage = DatabaseStorage(server.url, name, folder, lease_seconds=0.4)
    join(storage, STUDY)
    return storage


def wait_for(storage: DatabaseStorage, seconds: float) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (hold := take(storage)) is not None:
            return hold
        time.sleep(0.1)
    return None


def test_without_shared_locks_a_sign_of_life_tells(postgres: Postgres, tmp_path: Path) -> None:
    one = elsewhere(postgres, "signs", tmp_path / "one")
    other = elsewhere(postgres, "signs", tmp_path / "other")
    hold = begin(one)
    assert wait_for(other, 1.2) is None  # it lives
    hold._over.set()  # and now it does not
    taken = wait_for(other, 6)
    assert taken is not None
    assert wait_for(one, 1.0) is None  # nor does one come back when it wakes up
    taken.release()


def test_a_restarted_server_is_waited_for(
    postgres_of_its_own: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = postgres_of_its_own
    storage = elsewhere(server, "restarts", tmp_path / "lab")
    begin(storage, 0)
    with storage.locked():
        server.stop()
        server.start()
        storage.end_trial(0, COMPLETE)
        assert [trial.ending for trial in storage.read_trials()] == [COMPLETE]
    server.stop()
    child = os.fork()
    if child == 0:
        time.sleep(1)
        server.start()
        os._exit(0)
    begin(storage, 1)
    end_of(child)
    assert "trying again" in caplog.text
    with storage.locked():
        assert len(storage.read_trials()) == 2


def test_a_server_that_stays_away_is_an_error(
    postgres_of_its_own: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = elsewhere(postgres_of_its_own, "away", tmp_path / "lab")
    postgres_of_its_own.stop()
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(NodeError, match=r"has not answered for 0 s.*\. The same command goes on"):
        begin(storage)


def test_trials_of_another_program_are_not_ours(postgres: Postgres, tmp_path: Path) -> None:
    import optuna

    url = postgres.url.replace("postgresql://", "postgresql+psycopg://")
    theirs = optuna.create_study(storage=url, study_name="theirs")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match=r"trials of another program; use another tune\.study"):
        elsewhere(postgres, "theirs", tmp_path / "lab")


def test_optunas_own_tools_read_the_trials(postgres: Postgres, tmp_path: Path) -> None:
    import optuna

    storage = elsewhere(postgres, "shown", tmp_path / "lab")
    begin(storage)
    with storage.locked():
        storage.end_trial(0, COMPLETE)
    url = postgres.url.replace("postgresql://", "postgresql+psycopg://")
    (trial,) = optuna.load_study(storage=url, study_name="shown").trials
    assert trial.params == {"a": VALUES["a"], "b": json.dumps([1])}
    assert trial.intermediate_values == {1: 1.5, 2: 1 / 3}
    assert trial.value == 1 / 3
