"""`nexa runs`: what it lists, whom it stops, what it goes on with; quick among many thousand runs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nexa_core.errors import GateError, UserError
from nexa_core.holder import Holder, hold, read_ending, read_holder
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_ops.runs.control import resume, stop
from nexa_ops.runs.follow import tail
from nexa_ops.runs.show import show_run
from nexa_ops.runs.states import STATES, find_run, standing_of
from nexa_ops.runs.table import Filters, list_rows, parse_since
from nexa_train.train import run
from scripts.completion import complete_state
from tests.conftest import FinishedLab
from tests.labs import make_config, write_config
from tests.test_training import files_of

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def make_run(
    layout: Layout, run_id: str, *, experiment: str = "a", metrics: dict[str, float] | None = None
) -> RunFolder:
    """A run's folder as one that was killed leaves it; with metrics, of a finished one."""
    run = RunFolder(layout.runs / experiment / run_id)
    run.checkpoints.mkdir(parents=True)
    run.lineage.write_text('{"kind": "training", "parents": []}')
    run.step_metrics.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    if metrics is not None:
        layout.run_manifests.mkdir(parents=True, exist_ok=True)
        manifest = {"run_id": run_id, "config": "c.yaml", "run_dir": layout.relative(run.path), "metrics": metrics}
        (layout.run_manifests / f"{run_id}.json").write_text(json.dumps(manifest))
    return run


def ids(layout: Layout, limit: int = 0, **asked: object) -> list[str]:
    return [row.run_id for row in list_rows(layout, Filters(**asked), limit=limit).rows]  # type: ignore[arg-type]


@pytest.fixture
def desk(tmp_path: Path) -> Layout:
    """A laboratory with a run in each state but running."""
    layout = Layout(tmp_path)
    make_run(layout, "good_20260101_000000", metrics={"accuracy": 0.95})
    make_run(layout, "poor_20260102_000000", experiment="b", metrics={"accuracy": 0.6})
    make_run(layout, "killed_20260103_000000")
    failed = make_run(layout, "failed_20260104_000000")
    with contextlib.suppress(GateError), hold(failed, num_steps=10) as note:
        note.write(2)
        raise GateError("The loss became nan at step 3")
    make_run(layout, "partial_20260105_000000").lineage.unlink()
    evaluation = make_run(layout, "good_eval_20260106_000000")
    evaluation.lineage.write_text('{"kind": "evaluation"}')
    return layout


def test_every_state_is_told_and_an_evaluation_is_no_run(desk: Layout) -> None:
    states = {row.run_id.partition("_")[0]: row.state for row in list_rows(desk, Filters(), limit=0).rows}
    assert states == {
        "good": "finished",
        "poor": "finished",
        "killed": "interrupted",
        "failed": "failed",
        "partial": "partial",
    }
    with hold(find_run(desk, "killed").run):
        assert ids(desk, states=("running",)) == ["killed_20260103_000000"]
    assert complete_state("") == sorted(STATES)


def test_the_filters_and_the_limit_keep_the_newest_that_fit(desk: Layout) -> None:
    assert ids(desk, states=("finished",)) == ["poor_20260102_000000", "good_20260101_000000"]
    assert ids(desk, experiment="b") == ["poor_20260102_000000"]
    assert ids(desk, where=("accuracy>0.9",)) == ["good_20260101_000000"]
    assert ids(desk, where=("accuracy <= 0.95", "accuracy>0.7")) == ["good_20260101_000000"]
    assert ids(desk, since=parse_since("28d", now=NOW)) == ["partial_20260105_000000", "failed_20260104_000000"]
    assert ids(desk, since=parse_since("2026-01-05", now=NOW)) == ["partial_20260105_000000"]
    table = list_rows(desk, Filters(), limit=2)
    assert [row.run_id for row in table.rows] == ["partial_20260105_000000", "failed_20260104_000000"]
    assert table.as_text(now=NOW).splitlines()[-1] == "3 older ones are not shown: --limit 0 shows all"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"states": ("runing",)}, "Unknown state 'runing'. Did you mean 'running'?"),
        ({"experiment": "c"}, "Unknown experiment 'c'. Allowed: a, b"),
        ({"where": ("accuracy~1",)}, "expected a metric, one of >= <= > < =, and a number"),
        ({"where": ("acuracy>0.1",)}, "Did you mean 'accuracy'?"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(desk: Layout, asked: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as refused:
        ids(desk, **asked)
    assert says in str(refused.value)
    with pytest.raises(UserError, match="--since soon: expected 90m"):
        parse_since("soon", now=NOW)


def test_a_run_is_named_by_as_much_of_its_id_as_is_clear(desk: Layout) -> None:
    assert find_run(desk, "poor").run_id == "poor_20260102_000000"
    assert find_run(desk, "good_2").run_id == "good_20260101_000000"
    with pytest.raises(
        UserError, match=r"2 runs begin with 'p': partial_20260105_000000, poor_20260102_000000\. Add to it"
    ):
        find_run(desk, "p")
    with pytest.raises(UserError, match="Did you mean 'failed_20260104_000000'"):
        find_run(desk, "faild_20260104_000000")
    with pytest.raises(UserError, match="this laboratory has none yet"):
        find_run(Layout(desk.root / "empty"), "a")


def test_what_is_shown_of_a_failed_run_says_why_how_far_and_how_to_go_on(desk: Layout) -> None:
    text = show_run(desk, find_run(desk, "failed")).as_text(now=NOW)
    for words in ("(failed)", "The loss became nan at step 3", "2 of 10", "loss 2.25", "nexa runs resume failed_"):
        assert words in text
    assert "result" in show_run(desk, find_run(desk, "good")).as_json()


def test_a_lock_that_is_taken_again_forgets_the_ending_before(desk: Layout) -> None:
    run = find_run(desk, "failed").run
    assert read_ending(run) is not None
    with hold(run):
        assert read_ending(run) is None
        assert read_holder(run).pid == os.getpid()  # type: ignore[union-attr]


def test_only_the_very_process_is_told_to_end(tmp_path: Path) -> None:
    """A number that another process has by now is left alone, and so is one of another machine."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = make_run(Layout(tmp_path), "x_20260101_000000")
    with hold(run):
        me = read_holder(run)
    assert me is not None
    stale = replace(me, pid=other.pid, started=me.started - 1)
    stale.tell(signal.SIGKILL)
    replace(me, pid=2**22 - 1).tell(signal.SIGKILL)  # none has it
    with pytest.raises(UserError, match="is on elsewhere; stop it there"):
        replace(stale, host="elsewhere").tell(signal.SIGKILL)
    assert other.poll() is None
    replace(stale, started=_started(other.pid)).tell(signal.SIGKILL)
    assert other.wait(10) == -signal.SIGKILL


def test_a_log_that_is_rotated_or_cut_is_followed_to_the_end_of_the_run(desk: Layout) -> None:
    found = find_run(desk, "killed")
    log = desk.logs / f"{found.run_id}.log"
    log.parent.mkdir()
    log.write_text("one\ntwo\nthree\n")
    said: list[str] = []
    began = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        began.set()

    with hold(found.run):
        reader = threading.Thread(target=tail, args=(desk, found), kwargs={"count": 2, "follow": True, "say": say})
        reader.start()
        assert began.wait(10)
        with log.open("a") as file:
            file.write("four\n")
        log.rename(log.with_suffix(".log.1"))
        log.write_text("five\n")
        _wait_for(lambda: "five" in said)
        log.write_text("6\n")  # cut, and shorter
        _wait_for(lambda: "6" in said)
        log.open("a").write("seven\n")
    reader.join(10)
    assert said == ["two", "three", "four", "five", "6", "seven"]
    with pytest.raises(UserError, match="There is no log"):
        tail(desk, find_run(desk, "good_2"), count=1, follow=False, say=say)


@pytest.fixture
def training(lab: Layout) -> Iterator[subprocess.Popen[bytes]]:
    """A run that takes long."""
    path = write_config(lab.root / "run.yaml", make_config("mlp", training={"epochs": 2000}))
    environment = {**os.environ, "NEXA_ROOT": str(lab.root)}
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "train", "--config", str(path)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


def test_a_run_is_stopped_and_goes_on_with_its_own_config(lab: Layout, training: subprocess.Popen[bytes]) -> None:
    _wait_for(lambda: any((row.step or 0) > 30 for row in list_rows(lab, Filters(), limit=0).rows))
    found = find_run(lab, "mlp")
    with pytest.raises(UserError, match=r"There is nothing to resume: run mlp_.* is running"):
        resume(lab, found, [])
    ended = stop(lab, found, now=False, wait_seconds=60)
    assert "is finished and saved" in ended.as_text()
    assert training.wait(60) == 143
    with pytest.raises(UserError, match="There is nothing to stop"):
        stop(lab, found, now=False, wait_seconds=1)
    with pytest.raises(UserError, match="began with other settings than these"):
        resume(lab, found, ["training.optimizer.lr=0.5"])


def test_stop_now_ends_a_process_that_does_nothing_when_told(lab: Layout, training: subprocess.Popen[bytes]) -> None:
    # Before its first step a SIGTERM ends it, stopped or not: nothing hears that yet.
    _wait_for(lambda: any((row.step or 0) > 0 for row in list_rows(lab, Filters(), limit=0).rows))
    found = find_run(lab, "mlp")
    training.send_signal(signal.SIGSTOP)
    with pytest.raises(GateError, match="nexa runs stop --now"):
        stop(lab, found, now=False, wait_seconds=0.5)
    assert stop(lab, found, now=True, wait_seconds=60).standing.state == "interrupted"
    assert training.wait(60) == -signal.SIGKILL


def test_of_two_runs_of_one_config_the_one_that_is_named_goes_on(lab: Layout) -> None:
    config = make_config("mlp", training={"epochs": 1})
    whole = run(config, layout=lab, now=lambda: NOW)
    expected = files_of(whole.run.path)
    for result in (whole, run(config, layout=lab, now=lambda: NOW + timedelta(days=1))):
        result.manifest_path.unlink()  # as if killed before its last write
    resumed = resume(lab, find_run(lab, whole.run.run_id), [])
    assert resumed.run.run_id == whole.run.run_id
    assert files_of(resumed.run.path) == expected
    assert [row.run_id for row in list_rows(lab, Filters(states=("finished",)), limit=0).rows] == [whole.run.run_id]


def test_a_finished_run_has_no_word_of_how_it_ended(pristine_lab: FinishedLab) -> None:
    assert read_ending(pristine_lab.run("mlp")) is None
    holder = read_holder(pristine_lab.run("mlp"))
    assert isinstance(holder, Holder)
    assert not holder.is_alive or holder.pid == os.getpid()


def test_as_many_lines_as_are_asked_for_are_whole(desk: Layout) -> None:
    found, said = find_run(desk, "good_2"), list[str]()
    log = desk.logs / f"{found.run_id}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(3000)))
    tail(desk, found, count=2000, follow=False, say=said.append)
    assert [line.split()[1] for line in said] == [str(number) for number in range(1000, 3000)]


def test_a_score_is_printed_with_its_interval(pristine_lab: FinishedLab) -> None:
    scored = json.loads(pristine_lab.run("mlp").metrics.read_bytes())["metrics"]["accuracy"]
    expected = "accuracy {value:.4f} ({low:.4f} to {high:.4f})".format(**scored)
    layout = pristine_lab.layout
    run_id = pristine_lab.run("mlp").run_id
    assert expected in list_rows(layout, Filters(), limit=0).as_text(now=NOW)
    shown = show_run(layout, find_run(layout, run_id))
    assert f"score        {expected}" in shown.as_text(now=NOW).splitlines()
    assert shown.as_json()["metrics"]["accuracy"]["low"] == scored["low"]


def test_of_many_checkpoints_the_newest_are_named_in_their_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    run = make_run(layout, "long_20260101_000000")
    for epoch in range(12):
        path = run.checkpoints / f"checkpoint_epoch{epoch}.pt"
        path.write_bytes(b"w" * 1000)
        os.utime(path, (epoch, epoch))
    lines = show_run(layout, find_run(layout, "long")).as_text(now=NOW).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("checkpoint")] == [
        "checkpoint_epoch9.pt",
        "checkpoint_epoch10.pt",
        "checkpoint_epoch11.pt",
    ]
    assert any(line.strip() == "and 9 older, 9.0 kB" for line in lines)


COUNT_OPENED = """
import sys
from pathlib import Path
from nexa_core.paths import Layout
from nexa_ops.runs.table import Filters, list_rows

opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event in ("open", "os.scandir", "os.listdir") else None)
assert len(list_rows(Layout(Path(sys.argv[1])), Filters(where=("accuracy>0.1",)), limit=20).rows) == 20
print(len(opened))
"""


def test_options_of_the_listing_before_another_command_are_refused(desk: Layout) -> None:
    """They would be ignored."""
    command = [sys.executable, "-m", "scripts.cli", "runs", "--state", "failed", "show", "failed_2026"]
    environment = {**os.environ, "NEXA_ROOT": str(desk.root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: --state belongs to nexa runs list, and nexa runs show would ignore it" in done.stderr


def test_a_trial_is_gone_on_with_by_its_search(desk: Layout) -> None:
    run = make_run(desk, "mlp_t003_20260107_000000", experiment="s")
    (desk.artifacts / "tune" / "s").mkdir(parents=True)
    found = find_run(desk, run.run_id)
    assert "the same nexa tune command of search s goes on with it" in show_run(desk, found).as_text(
        now=datetime(2026, 1, 8, tzinfo=UTC)
    )
    with pytest.raises(UserError, match=r"a trial of search s.*the same nexa tune command"):
        resume(desk, found, [])
    beside = find_run(desk, make_run(desk, "mlp_20260107_000001", experiment="s").run_id)
    assert show_run(desk, beside).search is None


def test_a_listing_opens_one_file_of_each_run_that_it_compares(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    (layout.run_manifests).mkdir(parents=True)
    for index in range(1000):
        run_id = f"many_{NOW - timedelta(minutes=index):%Y%m%d_%H%M%S}"
        (layout.runs / f"e{index % 10}" / run_id).mkdir(parents=True)
        (layout.run_manifests / f"{run_id}.json").write_text('{"metrics": {"accuracy": 0.5}}')
    done = subprocess.run([sys.executable, "-c", COUNT_OPENED, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000 + 20 * 10  # the manifests, and whatever more of the 20 that are shown


def _started(pid: int) -> int:
    from nexa_core.holder import started_at

    return started_at(pid) or 0


def _wait_for(condition, seconds: float = 60) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_standing_of_nothing_is_none(desk: Layout) -> None:
    assert (
        standing_of(replace(find_run(desk, "killed"), run=RunFolder(desk.runs / "a" / "gone_20260101_000000"))) is None
    )
