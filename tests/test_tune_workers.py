"""Several workers, killed at random, on one machine and on many: no trial is lost, none is run twice, all is as with one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest

from nexa_core import durable, holder
from nexa_core.errors import GateError, Preempted, UserError
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_ops.runs.control import stop
from nexa_ops.runs.searches import stop_search, study_of
from nexa_ops.runs.states import Found, Standing, find_runs, standing_of
from nexa_train.tune.again import train_again
from nexa_train.tune.presence import ended_when_told, taking_part
from nexa_train.tune.records import Ending, Trial
from tests.postgres import Postgres
from tests.studies import assert_each_ran_once, end_of, found, search_of, start_worker, trials_of, write_study

NUM_TRIALS = 8
LR = "training.optimizer.lr"
STUDY: dict[str, Any] = {"strategy": "tpe", "parallel": 4, "pruner": {"name": "asha", "reduction_factor": 2}}


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """The study with one worker, never interrupted."""
    root = tmp_path_factory.mktemp("alone")
    shutil.copytree(prepared, root / "lab")
    return trials_of(write_study(root / "run.yaml", **STUDY), Layout(root / "lab"), NUM_TRIALS)


def command_for(path: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "scripts.cli", "tune", "--config", str(path), f"--max-trials={NUM_TRIALS}", *more]


def start(lab: Layout, command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "NEXA_ROOT": str(lab.root)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def wait_until(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_killed_with_its_workers_the_command_goes_on(lab: Layout, alone: list[Trial], tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml", **STUDY)
    command = command_for(path, "--workers", "2", "--json")
    journal = lab.artifacts / "tune" / "test_tune" / "journal.jsonl"
    process = start(lab, command)
    wait_until(lambda: journal.exists() and b'"end"' in journal.read_bytes())
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)  # they end by themselves
    process.communicate()

    process = start(lab, command)  # one of two is killed, and the other one finishes
    wait_until(lambda: len(workers_of(process)) == 2)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    search = search_of(path, lab)
    assert found(search.trials()) == found(alone)
    assert [trial["value"] for trial in json.loads(out)["trials"]] == [
        trial.ending.value for trial in alone if trial.ending
    ]
    assert_each_ran_once(lab)
    trial = train_again(search, 3)
    assert trial.recorded is not None
    assert trial.differing == []


def test_ctrl_c_once_ends_the_workers_saved_and_twice_at_once(lab: Layout, alone: list[Trial], tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml", **STUDY)
    command = command_for(path, "--workers", "2")
    journal = lab.artifacts / "tune" / "test_tune" / "journal.jsonl"
    process = start(lab, command)
    wait_until(lambda: journal.exists() and b'"end"' in journal.read_bytes())
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("interrupted: the workers finish their step and save it") == 1
    assert said.splitlines()[-1] == "error: interrupted, and so were the workers; the same command goes on"
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)

    process = start(lab, command)
    wait_until(lambda: len(workers_of(process)) == 2)
    workers = workers_of(process)
    for pid in workers:  # one that does nothing when told
        os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: stopped at once; the same command goes on from what was saved"
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert found(trials_of(path, lab, NUM_TRIALS)) == found(alone)
    assert_each_ran_once(lab)


@pytest.mark.parametrize(
    "what", ["trial", pytest.param("study", marks=pytest.mark.slow), pytest.param("now", marks=pytest.mark.slow)]
)
def test_a_search_is_stopped_as_a_whole_by_its_name_or_one_of_its_trials(
    what: str, lab: Layout, tmp_path: Path
) -> None:
    """A trial alone would be taken up by the next worker."""
    path = write_study(tmp_path / "run.yaml", training={"epochs": 20_000})
    process = start(lab, command_for(path, "--workers", "2"))

    def running() -> list[Found]:
        standings = [(each, standing_of(each)) for each in find_runs(lab)]
        return [each for each, standing in standings if standing and standing.state == "running"]

    wait_until(lambda: len(running()) == 2)
    workers, trial = workers_of(process), running()[0]
    if what == "trial":
        stopped = stop(lab, trial, now=False, wait_seconds=120)
        assert stopped.as_text().startswith(
            f"run {trial.run_id} is a trial of search test_tune, and its command has ended"
        )
    else:
        stopped = stop_search(lab, "test_tune", now=what == "now", wait_seconds=120)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if what == "now" else 143), said
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 60)
    assert running() == []
    with pytest.raises(UserError, match="no nexa tune command of this machine works on study test_tune"):
        stop_search(lab, "test_tune", now=False, wait_seconds=1)
    assert not list((lab.artifacts / "tune" / "test_tune" / "commands").iterdir())
    assert [trial.ending for trial in search_of(path, lab).trials()] == [None, None]


def test_stopped_now_a_search_takes_no_other_run_of_its_folder_along(lab: Layout, tmp_path: Path) -> None:
    folder = lab.artifacts / "tune" / "s"
    command = subprocess.Popen([sys.executable, "-c", COMMAND, str(folder)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "there\n"
    own = RunFolder(lab.runs / "s" / "mlp_20260102_030405")
    durable.write_json(own.lineage, {"kind": "training", "parents": []})
    with holder.hold(own):  # by this process, which no command of the search started
        stopped = stop_search(lab, "s", now=True, wait_seconds=30)
    assert (stopped.num_commands, stopped.elsewhere) == (1, ())
    assert command.wait(timeout=30) == -signal.SIGKILL


COMMAND = """
import sys, time
from pathlib import Path
from nexa_train.tune.presence import taking_part
with taking_part(Path(sys.argv[1])):
    print("there", flush=True)
    time.sleep(60)
"""


def test_told_to_end_between_two_trials_a_search_says_so(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml")
    with taking_part(tmp_path), pytest.raises(Preempted, match="between two trials; the same command goes on"):
        before = signal.getsignal(signal.SIGTERM)
        try:
            with ended_when_told():
                seen = search_of(path, lab)._next(1)
                assert seen.hold is not None
                os.kill(os.getpid(), signal.SIGTERM)
                search_of(path, lab).work(1)  # which waits for the trial that is held
        finally:
            signal.signal(signal.SIGTERM, before)
    assert [trial.ending for trial in search_of(path, lab).trials()] == [None]


def test_a_run_in_a_searchs_folder_is_no_trial_of_it(lab: Layout, tmp_path: Path) -> None:
    """A run of the user's own beside the trials, while the search goes on, is stopped alone."""
    found = Found(RunFolder(lab.runs / "s" / "mlp_t000_20260102_030405"), datetime.now(UTC), 1, is_finished=False)
    with taking_part(lab.artifacts / "tune" / "s"):
        assert study_of(lab, found, Standing("running", holder.this_process())) == "s"
        above = replace(holder.this_process(), pid=os.getppid())
        assert study_of(lab, found, Standing("running", above)) is None
    assert study_of(lab, found, Standing("running", holder.this_process())) is None


def test_a_trial_that_ends_its_workers_is_recorded_as_failed_by_its_user(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml")
    search = search_of(path, lab)
    with search.storage.locked():
        hold = search.storage.begin_trial(0, {"training.optimizer.lr": 0.01, "model.parameters.dropout": 0.0})
    assert hold is not None
    with pytest.raises(UserError, match="a worker trains it"):
        search_of(path, lab).fail(0)
    hold.release()
    process = start(lab, command_for(path, "--fail", "0"))
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert out.startswith("trial 0 has failed; the search goes on without it")
    with pytest.raises(UserError, match="expected a trial that was begun and has not ended: none"):
        search_of(path, lab).fail(0)
    first, second = trials_of(path, lab, 2)
    assert first.ending is not None
    assert (first.ending.state, first.ending.reason) == ("failed", "given up by --fail")
    assert second.ending is not None
    assert second.ending.state == "complete"


def test_a_run_that_is_looked_at_fails_no_trial(lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(tmp_path / "run.yaml")
    taken, tries = holder._taken, []

    def is_held_once(run: RunFolder) -> TextIO:
        tries.append(run)
        if len(tries) == 1:
            raise holder.Held("Run x is being written by another process.")
        return taken(run)

    monkeypatch.setattr(holder, "_taken", is_held_once)
    (trial,) = trials_of(path, lab, 1)
    assert trial.ending is not None
    assert trial.ending.state == "complete"
    assert len(tries) == 2


def test_trials_of_two_processes_replace_nothing_that_is_shown(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml", training={"epochs": 1, "distributed": {"world_size": 2}})
    (trial,) = trials_of(path, lab, 1)
    assert trial.ending is not None
    assert trial.ending.state == "complete"
    assert (lab.root / trial.ending.run_dir / "metrics.json").is_file()
    assert not lab.checkpoints.exists()
    assert not (lab.run_manifests / "run_manifest.json").exists()


def test_a_trial_by_itself_is_the_studys(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml")
    by_itself = train_again(search_of(path, lab), 2)
    assert by_itself.recorded is None
    assert search_of(path, lab).trials() == []
    (*_, third) = trials_of(path, lab, 3)
    assert third.ending is not None
    assert (by_itself.trial.values, by_itself.ending.reports) == (third.values, third.ending.reports)


def test_a_trial_that_comes_out_otherwise_is_told(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml")
    trials_of(path, lab, 1)
    journal = lab.artifacts / "tune" / "test_tune" / "journal.jsonl"
    *before, end = journal.read_text().splitlines()
    record = json.loads(end)
    journal.write_text("\n".join([*before, json.dumps({**record, "value": record["value"] + 1e-16 + 1e-9})]) + "\n")
    again = train_again(search_of(path, lab), 0)
    assert again.differing == ["value"]
    with pytest.raises(GateError, match="Trial 0: value is"):
        again.require_same()


def test_a_trial_that_learns_from_others_needs_them(lab: Layout, tmp_path: Path) -> None:
    path = write_study(tmp_path / "run.yaml", strategy="tpe")
    with pytest.raises(UserError, match="drawn from the results of trials 0 to 2, and 3 of them"):
        train_again(search_of(path, lab), 6)


def test_a_trial_is_drawn_without_the_studys_lock_and_begun_once(
    lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may take what is being drawn; then the next one is drawn."""
    path = write_study(tmp_path / "run.yaml", strategy="tpe")
    slow, fast = search_of(path, lab), search_of(path, lab)
    draw, drawn, taken = slow.mirror.draw, [], []

    def draw_slowly(number: int, trials: list[Trial]) -> Any:
        durable.Journal(lab.artifacts / "tune" / "test_tune" / "journal.jsonl").close()  # not held by anyone
        drawn.append(number)
        if number == 0:
            taken.append(fast._next(2))
        return draw(number, trials)

    monkeypatch.setattr(slow.mirror, "draw", draw_slowly)
    found = slow._next(2)
    assert (taken[0].number, found.number, drawn) == (0, 1, [0, 1])
    assert [trial.values for trial in slow.trials()] == [taken[0].trials[0].values, found.trials[1].values]
    for each in (taken[0], found):
        each.hold.release()


def test_another_strategy_under_the_same_name_is_noticed(
    lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path / "run.yaml")
    one, other = search_of(path, lab), search_of(path, lab)

    def draw_otherwise(number: int, trials: list[Trial]) -> Any:
        other._next(1)
        return {LR: 0.5}

    monkeypatch.setattr(one.mirror, "draw", draw_otherwise)
    with pytest.raises(UserError, match=r"draws .* for trial 0, and drew"):
        one._next(1)


def test_a_worker_that_waits_looks_seldom_and_is_there_at_once(
    lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path / "run.yaml")
    search, other = search_of(path, lab), search_of(path, lab)
    seen = other._next(1)
    assert seen.hold is not None
    looks, read = [], search.storage.read_trials

    def counted() -> list[Trial]:
        looks.append(time.monotonic())
        return read()

    monkeypatch.setattr(search.storage, "read_trials", counted)
    waiting = threading.Thread(target=search.work, args=(1,), daemon=True)
    waiting.start()
    time.sleep(3.0)
    assert 2 <= len(looks) <= 6
    with (lab.artifacts / "tune" / "test_tune" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"kind": "en')  # what a worker that is killed now leaves
    time.sleep(1.0)
    with other.storage.locked():
        other.storage.end_trial(0, Ending("complete", 1.0))
    began = time.monotonic()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert looks[-1] - began < 1.5


def test_a_trial_of_a_lost_node_is_failed_from_another_that_shares_only_a_server(
    prepared: Path, postgres_of_its_own: Postgres, tmp_path: Path
) -> None:
    labs = [Layout(tmp_path / name) for name in ("one", "other")]
    for each in labs:
        shutil.copytree(prepared, each.root)
    path = write_study(tmp_path / "run.yaml", storage=postgres_of_its_own.url, lease_seconds=1.0)
    lost = search_of(path, labs[0])
    with lost.storage.locked():
        hold = lost.storage.begin_trial(0, {LR: 0.01, "model.parameters.dropout": 0.0})
    assert hold is not None
    with pytest.raises(UserError, match="a worker trains it; end that first"):
        search_of(path, labs[1]).fail(0)
    hold.release()  # no sign of life any more
    search_of(path, labs[1]).fail(0)
    (trial,) = lost.trials()
    assert trial.ending is not None
    assert trial.ending.state == "failed"


@pytest.mark.slow
def test_what_is_wrong_is_said_once_for_all_workers(lab: Layout, tmp_path: Path) -> None:
    space = {"training.optimizer.lr": {"name": "choice", "values": [1e30]}}
    path = write_study(tmp_path / "run.yaml", space=space, max_failed_in_a_row=2)
    process = start(lab, command_for(path, "--workers", "2"))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3
    assert said.count("trials failed one after another") == 1


def kill_often(path: Path, lab: Layout, *, num_workers: int, num_kills: int, seed: int, num_trials: int) -> int:
    """Workers on a study, of which one after the other is killed and started again; how many trials had ended by then."""
    draw = random.Random(seed)
    log = lab.root / "worker.log"
    search = search_of(path, lab)
    assert search.trials() == []  # with the imports that this takes done before workers are forked
    began = time.monotonic()
    running = [start_worker(path, lab, num_trials, log=log) for _ in range(num_workers)]
    wait_until(lambda: any(trial.ending is not None for trial in search.trials()))
    start_seconds = time.monotonic() - began  # a worker that is killed sooner each time would get nowhere
    for _ in range(num_kills):
        time.sleep(draw.uniform(0.05, 0.5) * start_seconds)
        victim = draw.randrange(num_workers)
        os.kill(running[victim], signal.SIGKILL)
        assert end_of(running[victim]) in (None, 0), log.read_text() if log.exists() else ""
        running[victim] = start_worker(path, lab, num_trials, log=log)
    ended = sum(trial.ending is not None for trial in search.trials())
    for child in running:
        assert end_of(child) == 0, log.read_text()
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "postgresql"])
def test_fifty_random_kills_of_four_workers(
    storage: str, prepared: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    own: dict[str, Any] = {}
    if storage == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        own = {"storage": server.url, "study": f"kills_{os.getpid()}"}
    num_trials = 160
    for name in ("alone", "lab"):
        shutil.copytree(prepared, tmp_path / name)
    expected = trials_of(
        write_study(tmp_path / "alone.yaml", study="kills", **STUDY), Layout(tmp_path / "alone"), num_trials
    )
    path, lab = write_study(tmp_path / "run.yaml", **STUDY, **own), Layout(tmp_path / "lab")
    ended = kill_often(path, lab, num_workers=4, num_kills=50, seed=1, num_trials=num_trials)
    assert 5 < ended < num_trials  # the kills came while there was work
    trials = search_of(path, lab).trials()
    assert len(trials) == num_trials
    assert found(trials) == found(expected)
    assert_each_ran_once(lab)


def test_nodes_with_nothing_but_a_server_in_common(
    prepared: Path, alone: list[Trial], postgres_of_its_own: Postgres, tmp_path: Path
) -> None:
    """Two laboratories, one server that crashes in the middle, and a node that is lost with its folder."""
    server = postgres_of_its_own
    labs = [Layout(tmp_path / name) for name in ("one", "other")]
    for each in labs:
        shutil.copytree(prepared, each.root)
    path = write_study(tmp_path / "run.yaml", **STUDY, storage=server.url, lease_seconds=2.0)
    children = [start_worker(path, each, NUM_TRIALS, log=each.root / "worker.log") for each in labs]
    searches = search_of(path, labs[0])
    wait_until(lambda: len(searches.trials()) >= 3)
    server.stop()
    time.sleep(1.0)
    server.start()
    wait_until(lambda: sum(trial.ending is not None for trial in searches.trials()) >= 4)
    os.kill(children[1], signal.SIGKILL)
    assert end_of(children[1]) in (None, 0)
    shutil.rmtree(labs[1].root)
    assert end_of(children[0]) == 0, (labs[0].root / "worker.log").read_text()
    trials = searches.trials()
    assert found(trials) == found(alone)
