"""A run's record at its trackers: all of it, once, and never at the run's cost."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from nexa_core import durable
from nexa_core.config import RunConfig
from nexa_core.errors import Preempted, UserError
from nexa_core.paths import Layout
from nexa_core.redact import redact
from nexa_core.runs import RunFolder
from nexa_core.trackers import PrometheusFile, destinations_of, read_json_lines
from nexa_core.trackers.follow import MAX_BYTES_AT_ONCE, Tail
from nexa_core.trackers.manners import nice_sessions
from nexa_core.trackers.story import Story, Times
from nexa_core.trackers.wandb_files import read_records
from nexa_ops.track_sync import track_sync
from nexa_train.preemption import Preemption
from nexa_train.train import run
from tests.labs import make_config, write_config
from tests.trackers import free_port, hanging_server, mlflow_server, refusing_server

KEY = "0123456789abcdef0123456789abcdef01234567"
WAIT = {"wait_seconds": 90.0}
"""However busy this machine is, long enough for a client to be loaded and a server to answer."""
NUM_STEPS = 46


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture(autouse=True)
def no_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)


def config(experiment: str, **tracking: Any) -> RunConfig:
    made = make_config("mlp", training={"epochs": 2, "checkpoints": {"every_steps": 4}}, tracking={**WAIT, **tracking})
    return made.model_copy(update={"experiment": experiment})


def runs_at(server: str, experiment: str) -> list[Run]:
    client = MlflowClient(server)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def run_at(server: str, experiment: str) -> Run:
    (only,) = runs_at(server, experiment)
    return only


def curve_at(server: str, found: Run, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(server).get_metric_history(found.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def curve_of(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in read_json_lines(folder.step_metrics) if name in line]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """A run's files but those that tell of a time or a place."""
    told = {"cost.json", "environment.json", "lineage.json", "config.yaml"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in told
    }


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a run be told to end in its `step`th one, and wait for its followers however long their clients take to load."""
    asked: list[int] = []

    def asked_before(self: Preemption) -> int:
        asked.append(1)
        return int(len(asked) == step)

    monkeypatch.setattr(Preemption, "_asked_before", asked_before)
    monkeypatch.setattr("nexa_core.trackers.followers.STOPPED_WAIT_SECONDS", WAIT["wait_seconds"])


# MLflow


def test_mlflow_has_all_of_a_run(lab: Layout, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    result = run(config("whole"), layout=lab)
    found = run_at(server, "whole")
    assert (found.info.run_name, found.info.status) == (result.run.run_id, "FINISHED")
    assert found.data.params["training.optimizer.lr"] == "0.01"
    assert found.data.tags["nexa.fingerprint"] == json.loads(result.run.lineage.read_bytes())["fingerprint"]
    for name in ("loss", "lr", "gradient_norm", "val_loss"):
        assert curve_at(server, found, name) == curve_of(result.run, name)
    assert found.data.metrics["test_accuracy"] == result.metrics["metrics"]["accuracy"]["value"]
    assert {each.dataset.name for each in found.inputs.dataset_inputs} == {
        f"images_v1/{s}" for s in ("train", "val", "test")
    }
    client = MlflowClient(server)
    for path in (result.run.metrics, result.run.lineage, result.run.predictions):
        assert Path(client.download_artifacts(found.info.run_id, path.name)).read_bytes() == path.read_bytes()
    model = client.download_artifacts(found.info.run_id, f"model/{result.checkpoint.name}")
    assert Path(model).read_bytes() == result.checkpoint.read_bytes()


def test_a_resumed_run_goes_on_at_mlflow_and_no_step_is_there_twice(
    lab: Layout, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("resumed", mlflow_uri=server)
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        stop_after(6, patch)
        run(settings, layout=lab)
    begun = run_at(server, "resumed")
    assert begun.info.status == "KILLED"
    assert [step for step, _ in curve_at(server, begun, "loss")] == list(range(1, 7))
    (folder,) = (lab.runs / "resumed").iterdir()
    (folder / "checkpoints" / "checkpoint_step6.pt").unlink()  # so that it goes on at step 4, and makes two steps again
    result = run(settings, layout=lab, resume=True)
    found = run_at(server, "resumed")
    assert (found.info.run_id, found.info.status) == (begun.info.run_id, "FINISHED")
    assert curve_at(server, found, "loss") == curve_of(result.run, "loss")
    assert curve_at(server, found, "val_loss") == curve_of(result.run, "val_loss")


def test_track_sync_sends_what_is_missing_and_nothing_twice(
    lab: Layout, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(config("late"), layout=lab)
    before = bytes_of(result.run.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    (first,) = track_sync(result.run.run_id, lab).sent
    assert first.num_values > 3 * NUM_STEPS
    (second,) = track_sync(result.run.run_id, lab, to="mlflow").sent
    assert (second.num_values, second.address) == (0, first.address)
    found = run_at(server, "late")
    assert curve_at(server, found, "loss") == curve_of(result.run, "loss")
    assert found.info.status == "FINISHED"
    assert bytes_of(result.run.path) == before


def test_a_run_that_is_killed_is_so_at_mlflow_and_leaves_no_process(lab: Layout, server: str, tmp_path: Path) -> None:
    settings = make_config("mlp", training={"epochs": 100_000}, tracking={**WAIT, "mlflow_uri": server})
    path = write_config(tmp_path / "config.yaml", settings.model_copy(update={"experiment": "killed"}))
    command = [sys.executable, "-m", "scripts.cli", "train", "--config", str(path)]
    training = subprocess.Popen(command, env={**os.environ, "NEXA_ROOT": str(lab.root)}, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(found.data.metrics for found in runs_at(server, "killed")))
    finally:
        training.kill()
        training.wait()
    wait_until(lambda: run_at(server, "killed").info.status == "KILLED")
    (folder,) = (lab.runs / "killed").iterdir()
    wait_until(lambda: not list(lab.logs.glob(f".{folder.name}.*.lock")))


def wait_until(is_so: Callable[[], bool], *, seconds: float = 90.0) -> None:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


# A tracker that is of no use


@contextmanager
def nobody() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


FAULTS: dict[str, tuple[Callable[[], AbstractContextManager[str]], str, float]] = {
    "away": (nobody, "cannot be reached: .*Connection refused", 90.0),
    "refuses": (lambda: refusing_server(401), "says no: .*401", 90.0),
    "hangs": (hanging_server, "", 1.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tracker_that_is_of_no_use_costs_the_run_nothing_and_is_reported_once(
    fault: str, lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_server, said, wait_seconds = FAULTS[fault]
    shutil.copytree(lab.root, tmp_path / "without")
    settings = config("same", wait_seconds=wait_seconds)
    without = run(settings, layout=Layout(tmp_path / "without"))
    caplog.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    with open_server() as address, caplog.at_level(logging.WARNING):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("http://", "http://me:battery-staple@"))
        began = time.monotonic()
        result = run(settings, layout=lab)
        seconds = time.monotonic() - began
    assert seconds < 60.0
    assert bytes_of(result.run.path) == bytes_of(without.run.path)
    warned = [record.getMessage() for record in caplog.records]
    complaints = [line for line in warned if line.startswith("MLflow: ")]
    assert len(complaints) == (1 if said else 0)
    assert all(re.search(said, line) for line in complaints)
    assert warned[-1] == f"not all of it is at MLflow yet: nexa track-sync {result.run.run_id}"
    assert "battery-staple" not in "".join(warned)
    with open_server() as address, pytest.raises(UserError, match=r"^MLflow: "):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        track_sync(result.run.run_id, lab)


GIVES_WAY = """
import os, subprocess
from nexa_core.trackers.manners import LEAST, give_way, nice_sessions

def show():
    for pid in (os.getpid(), begun.pid):
        print(os.getpriority(os.PRIO_PROCESS, pid), open(f"/proc/{pid}/autogroup").read().split()[-1])

os.setsid()
give_way()
begun = subprocess.Popen(["sleep", "60"], start_new_session=True)
try:
    for niceness in (LEAST, 0):
        nice_sessions(os.getpid(), niceness)
        show()
finally:
    begun.kill()
"""


def test_who_sends_gives_way_with_the_sessions_that_it_begins_until_it_is_waited_for() -> None:
    if not Path("/proc/self/autogroup").exists():
        nice_sessions(os.getpid(), 0)  # where the kernel does not share by sessions, nothing comes of it
        return
    done = subprocess.run([sys.executable, "-c", GIVES_WAY], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:4] == ["19 19", "19 19", "19 0", "19 0"]


def test_wandb_that_refuses_the_key_is_reported_once_and_the_key_is_in_no_file(
    lab: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with refusing_server(401) as address, caplog.at_level(logging.WARNING):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        result = run(config("refused"), layout=lab)
    warned = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("Weights & Biases: ") for line in warned) == 1
    assert warned[-1] == f"not all of it is at Weights & Biases yet: nexa track-sync {result.run.run_id}"
    assert not [path for path in lab.root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


# Weights & Biases, without a server


def offline_runs(lab: Layout, run_id: str) -> list[list[Any]]:
    return [
        list(read_records(path)) for path in sorted((lab.logs / "wandb").glob(f"offline-run-*-{run_id}/run-*.wandb"))
    ]


def offline_curve(records: list[Any], name: str) -> list[tuple[int, float]]:
    found = []
    for record in records:
        if record.HasField("history"):
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            if name in values:
                found.append((record.history.step.num, values[name]))
    return found


def test_wandb_has_all_of_a_run_and_a_resumed_one_goes_on(lab: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = config("biased")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        stop_after(6, patch)
        run(settings, layout=lab)
    (folder,) = (lab.runs / "biased").iterdir()
    (folder / "checkpoints" / "checkpoint_step6.pt").unlink()
    result = run(settings, layout=lab, resume=True)
    first, second = offline_runs(lab, result.run.run_id)
    for name in ("loss", "lr", "val_loss"):
        assert offline_curve(first, name) + offline_curve(second, name) == curve_of(result.run, name)
    (opened,) = [record.run for record in second if record.HasField("run")][:1]
    assert (opened.run_id, opened.project) == (result.run.run_id, "biased")
    summary = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in second
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["test_accuracy"] == result.metrics["metrics"]["accuracy"]["value"]
    artefacts = {
        record.request.log_artifact.artifact.name if record.HasField("request") else record.artifact.name
        for record in second
    }
    assert {f"{result.run.run_id}-run", f"{result.run.run_id}-model"} <= artefacts
    assert not [path for path in lab.root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ["tensorboard"]),
        ({"WANDB_API_KEY": KEY}, ["tensorboard", "wandb"]),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, ["tensorboard"]),
        ({"MLFLOW_TRACKING_URI": "http://one"}, ["tensorboard", "mlflow"]),
        ({"MLFLOW_TRACKING_URI": ""}, ["tensorboard"]),
    ],
)
def test_the_environment_says_which_trackers_there_are(environment: dict[str, str], names: list[str]) -> None:
    assert [each.name for each in destinations_of(environment, tensorboard=True)] == names


def test_the_environment_goes_before_the_config() -> None:
    (found,) = destinations_of({"MLFLOW_TRACKING_URI": "http://shell"}, mlflow_uri="http://config")
    assert found.environment == {"MLFLOW_TRACKING_URI": "http://shell"}


# TensorBoard


def events_of(lab: Layout, run_id: str) -> EventAccumulator:
    found = EventAccumulator(str(lab.logs / run_id), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_curves_rates_settings_scores_and_texts_once_after_a_resume(
    lab: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_config(
        "causal_lm",
        training={"epochs": 3, "checkpoints": {"every_steps": 4}},
        evaluation={"generation": {"max_rows": 2}},
        tracking={"tensorboard": True},
    )
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        stop_after(6, patch)
        run(settings, layout=lab)
    (folder,) = (lab.runs / "test").iterdir()
    (folder / "checkpoints" / "checkpoint_step6.pt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("nexa_train.hooks.SECONDS_BETWEEN_PACES", 0.0)
        result = run(settings, layout=lab, resume=True)
    events = events_of(lab, result.run.run_id)
    for name in ("loss", "lr", "gradient_norm", "val_loss"):
        expected = [(step, pytest.approx(value, rel=1e-6)) for step, value in curve_of(result.run, name)]
        assert scalars(events, name) == expected
    assert scalars(events, "rates/useful_tokens_per_second")[0][1] > 0
    ((step, loss),) = scalars(events, "scores/test_loss")
    assert (step, loss) == (result.metrics["step"], pytest.approx(result.metrics["metrics"]["loss"]["value"]))
    (text,) = events.Tensors("samples")
    assert b"| row_id | target | prediction |" in text.tensor_proto.string_val[0]
    assert settings_at(lab, result.run.run_id)["training.optimizer.lr"] == 0.01


def test_who_stops_a_run_does_not_wait_for_its_trackers(lab: Layout, tmp_path: Path) -> None:
    """A follower that is held up, here by an earlier one of the run, is left to finish by itself."""
    settings = make_config("mlp", training={"epochs": 100_000}, tracking={"tensorboard": True, "every_steps": 20})
    path = write_config(tmp_path / "run.yaml", settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "train", "--config", str(path)],
        env={**os.environ, "NEXA_ROOT": str(lab.root)},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (found := list((lab.runs / "test").glob("*/metrics.jsonl"))):
        assert time.monotonic() < until
        time.sleep(0.01)
    story = Story(lab, RunFolder(found[0].parent))
    with durable.locked(story.lock_path("tensorboard")):
        time.sleep(1.0)  # some steps
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - began < 20.0
        assert process.returncode == 130, said
        assert f"logs/{story.run_id} gets the end of the TensorBoard events later" in said
    expected = [(step, pytest.approx(value, rel=1e-6)) for step, value in curve_of(story.run, "loss")]
    shown: list[tuple[int, float]] = []
    while len(shown) < len(expected):  # the follower goes on
        assert time.monotonic() < until + 60
        time.sleep(0.2)
        events = events_of(lab, story.run_id)
        shown = scalars(events, "loss") if "loss" in events.Tags()["scalars"] else []
    assert shown == expected


def settings_at(lab: Layout, run_id: str) -> dict[str, Any]:
    metadata = events_of(lab, run_id).SummaryMetadata("_hparams_/session_start_info")
    found = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    return {name: value.number_value or value.string_value for name, value in found.session_start_info.hparams.items()}


# Prometheus

SAMPLE = re.compile(r'^(nexa_run_\w+)\{run_id="([^"]*)",experiment="([^"]*)"\} (\S+)$')


def test_prometheus_finds_a_running_run_and_no_finished_one(
    lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexa_train.hooks.SECONDS_BETWEEN_PACES", 0.0)
    monkeypatch.setattr("nexa_core.trackers.prometheus.SECONDS_BETWEEN_WRITES", 0.0)
    seen: list[str] = []
    close = PrometheusFile.close

    def look_and_close(self: PrometheusFile) -> None:
        seen.append(next(lab.logs.glob("*.prom")).read_text())
        close(self)

    monkeypatch.setattr(PrometheusFile, "close", look_and_close)
    result = run(config("scraped", prometheus=True), layout=lab)
    assert not list(lab.logs.glob("*.prom"))
    lines = seen[0].splitlines()
    samples = [SAMPLE.match(line) for line in lines if not line.startswith("#")]
    values = {match[1]: float(match[4]) for match in samples if match is not None}
    assert len(values) == len(samples) == lines.count("") + sum(line.startswith("# TYPE") for line in lines)
    assert values["nexa_run_step"] == NUM_STEPS
    assert values["nexa_run_lr"] == 0.01
    assert {match[2] for match in samples if match is not None} == {result.run.run_id}
    assert all(f"# HELP {name} " in seen[0] and f"# TYPE {name} gauge" in seen[0] for name in values)


# Times, secrets, and who is talked to


def test_the_time_of_a_step_is_read_off_the_pace(lab: Layout) -> None:
    result = run(config("timed"), layout=lab)
    times = Times(Story(lab, result.run))
    times.learn([{"step": 10, "time": 100.0}, {"step": 20, "time": 120.0}])
    assert [times.of(step) for step in (3, 10, 15, 20)] == [100.0, 100.0, 110.0, 120.0]
    times.learn([{"step": 15, "time": 200.0}, {"step": 30, "time": 215.0}])  # resumed, at step 10
    assert [times.of(step) for step in (15, 20)] == [200.0, 205.0]
    assert times.of(31) == result.run.step_metrics.stat().st_mtime


def test_a_line_longer_than_is_read_at_once_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = [{"step": 1}, {"samples": "x" * (2 * MAX_BYTES_AT_ONCE)}, {"step": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step":')
    tail, read = Tail(path), []
    for _ in range(4):
        read += tail.read()
    assert read == lines
    assert tail.is_at_end


def test_the_password_in_an_address_is_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:battery-staple@tracking.example")
    assert redact("401 for me:battery-staple") == "401 for me:[MLFLOW_TRACKING_URI]"


def test_an_address_with_credentials_is_no_setting() -> None:
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_PASSWORD into \.env\.local"):
        config("secret", mlflow_uri="https://me:battery-staple@tracking.example")


WATCHED = """
import sys
talked_to = set()
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        talked_to.add(arguments[1][:2])
    if event == "socket.getaddrinfo":
        talked_to.add((arguments[0], int(arguments[1])))
sys.addaudithook(watch)
from pathlib import Path
from nexa_core.paths import Layout
from nexa_ops.track_sync import track_sync
track_sync(sys.argv[1], Layout(Path(sys.argv[2])))
print(sorted(talked_to))
"""


def test_nobody_is_talked_to_but_the_server_that_was_named(lab: Layout, server: str) -> None:
    result = run(config("private"), layout=lab)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    offline = {"MLFLOW_TRACKING_URI": server, "WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, result.run.run_id, str(lab.root)],
        env={**plain, **offline},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str([("127.0.0.1", int(server.rpartition(":")[2]))])
