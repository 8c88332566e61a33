"""`nexa reproduce`: a recorded run is run again; what is equal is said to be, and what is not, from which step on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_core import digests, durable
from nexa_core.errors import GateError, Interrupted, UserError
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_eval.evaluate import evaluate
from nexa_models.checkpoint import load_checkpoint, save_checkpoint
from nexa_ops.export import export
from nexa_ops.reproduce.reproduce import Reproduction, reproduce
from nexa_ops.reproduce.verdict import first_split, largest_difference
from nexa_train.preemption import Preemption
from nexa_train.train import run
from tests.conftest import FinishedLab
from tests.labs import make_config

TOLERANCE = 1e-3


def again(lab: FinishedLab, what: str, **how: Any) -> Reproduction:
    return reproduce(lab.layout, what, tolerance=TOLERANCE, **how)


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change values of a JSON file of the record, each by its dotted name."""
    document = json.loads(path.read_bytes())
    for name, value in change.items():
        *parents, last = name.split(".")
        inner = document
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    durable.write_json(path, document)


def record_anew(lab: FinishedLab, run_folder: RunFolder, name: str) -> None:
    """Have the record say that a file was what it is now."""
    lineage = json.loads(run_folder.lineage.read_bytes())
    lineage["outputs"][lab.layout.relative(run_folder.path / name)] = digests.of_file(run_folder.path / name)
    durable.write_json(run_folder.lineage, lineage)


@pytest.mark.parametrize("model", ["mlp", "causal_lm"])
def test_a_run_is_reproduced_bit_for_bit_and_nothing_else_changes(finished_lab: FinishedLab, model: str) -> None:
    before = finished_lab.files()
    done = again(finished_lab, finished_lab.run(model).run_id)
    assert done.verdict.kind == "exact"
    assert done.verdict.first_split is None
    assert done.verdict.weights_equal
    assert done.differing_inputs == ()
    assert done.as_text().splitlines()[-2].startswith(f"REPRODUCED run {finished_lab.run(model).run_id}, bit for bit")
    new = {name for name in finished_lab.files() - before if (finished_lab.root / name).is_file()}
    assert new == {f"artifacts/reproductions/{finished_lab.run(model).run_id}/verdict.json"}
    assert before <= finished_lab.files()
    done.require_pass(exact=True)


def test_other_settings_diverge_at_their_first_step(finished_lab: FinishedLab) -> None:
    """As if the record's settings had been meddled with."""
    recorded = finished_lab.run("mlp")
    settings = yaml.safe_load(recorded.config.read_text())
    settings["training"]["distributed"]["seed"] = 1
    durable.write_text(recorded.config, yaml.safe_dump(settings))
    done = again(finished_lab, recorded.run_id)
    assert done.verdict.kind == "diverged"
    assert done.verdict.first_split is not None
    assert done.verdict.first_split.step == 1
    assert not done.verdict.weights_equal
    assert "settings (or their defaults)" in done.differing_inputs
    assert (finished_lab.root / done.folder / "metrics.jsonl").is_file()  # kept, to be looked at
    with pytest.raises(GateError, match=r"was not reproduced within 0\.001"):
        done.require_pass(exact=False)


def test_other_code_with_the_same_results_says_so(finished_lab: FinishedLab) -> None:
    recorded = finished_lab.run("mlp")
    changes = {"inputs.code": "0" * 64, "inputs.packages.numpy": "1.0.0", "inputs.dataset.fingerprint": "1" * 64}
    rewrite(recorded.lineage, changes)
    for path in recorded.checkpoints.glob("checkpoint_*.pt"):  # each names the fingerprint of its run
        save_checkpoint(path, replace(load_checkpoint(path), fingerprint="0" * 64))
        record_anew(finished_lab, recorded, f"checkpoints/{path.name}")
    done = again(finished_lab, recorded.run_id)
    assert done.verdict.kind == "same results"
    assert all(name.startswith("checkpoints/") for name in done.verdict.differing_files)
    assert done.verdict.weights_equal
    assert "code" in done.differing_inputs
    assert any(each.startswith("numpy 1.0.0 -> ") for each in done.differing_inputs)
    assert any(each.startswith("dataset fingerprint 111111111111... -> ") for each in done.differing_inputs)
    done.require_pass(exact=True)


def test_scores_may_be_off_within_the_tolerance_unless_exactness_is_asked_for(finished_lab: FinishedLab) -> None:
    recorded = finished_lab.run("mlp")
    value = json.loads(recorded.metrics.read_bytes())["metrics"]["log_loss"]["value"]
    rewrite(recorded.metrics, {"metrics.log_loss.value": value * 1.0005})
    record_anew(finished_lab, recorded, "metrics.json")
    done = again(finished_lab, recorded.run_id)
    assert done.verdict.kind == "within tolerance"
    scored = json.loads(recorded.metrics.read_bytes())["metrics"]
    ends = {name: f"({score['low']:.4f} to {score['high']:.4f})" for name, score in scored.items()}
    lines = [line.split(maxsplit=1) for line in done.as_text().splitlines()[: len(ends)]]
    assert {name: text.count(ends[name]) for name, text in lines} == {
        name: 1 + (name == "log_loss") for name in ends
    }  # the recorded one's, and the new one's where it is another
    assert done.as_json()["intervals"]["log_loss"][0] == (scored["log_loss"]["low"], scored["log_loss"]["high"])
    done.require_pass(exact=False)
    with pytest.raises(GateError, match="to the last bit"):
        done.require_pass(exact=True)
    rewrite(recorded.metrics, {"metrics.log_loss.value": value * 1.01})
    assert again(finished_lab, recorded.run_id).verdict.kind == "diverged"


def test_a_second_run_that_is_interrupted_goes_on(finished_lab: FinishedLab, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = finished_lab.run("mlp")
    asked: list[int] = []

    def told_in_the_tenth_step(self: Preemption) -> int:
        asked.append(1)
        return 2 * (len(asked) == 10)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="the same command goes on with it"):
        patch.setattr(Preemption, "_asked_before", told_in_the_tenth_step)
        again(finished_lab, recorded.run_id)
    begun = list((finished_lab.layout.artifacts / "reproductions" / recorded.run_id).rglob("checkpoint_step10.pt"))
    assert len(begun) == 1
    assert again(finished_lab, recorded.run_id).verdict.kind == "exact"


def test_the_records_beside_exported_weights_are_enough(finished_lab: FinishedLab, tmp_path: Path) -> None:
    exported = tmp_path / "model"
    export(finished_lab.checkpoint("causal_lm"), exported, layout=finished_lab.layout)
    shutil.rmtree(finished_lab.run("causal_lm").path)
    done = again(finished_lab, str(exported))
    assert done.verdict.kind == "exact"
    assert done.verdict.weights_equal
    data = (exported / "model.safetensors").read_bytes()
    durable.write_bytes(exported / "model.safetensors", data[:-4] + b"\0\0\0?")
    assert not again(finished_lab, str(exported)).verdict.weights_equal


def test_as_many_processes_compute_with_as_many_threads(finished_lab: FinishedLab) -> None:
    training = {"epochs": 1, "distributed": {"world_size": 2}}
    result = run(make_config("mlp", training=training), layout=finished_lab.layout)
    assert again(finished_lab, result.run.run_id).verdict.kind == "exact"


def test_what_cannot_be_reproduced_is_refused(finished_lab: FinishedLab) -> None:
    layout, mlp = finished_lab.layout, finished_lab.run("mlp")
    with pytest.raises(UserError, match=f"Did you mean '{mlp.run_id}'"):
        again(finished_lab, mlp.run_id.replace("mlp", "mpl"))
    evaluation = evaluate(finished_lab.checkpoint("mlp"), layout=layout)
    with pytest.raises(UserError, match="is no run of training but of evaluation"):
        again(finished_lab, str(evaluation.run.path))
    rewrite(mlp.lineage, {"outputs": {}})
    with pytest.raises(UserError, match="has not finished"):
        again(finished_lab, mlp.run_id)
    mlp.lineage.write_text("{")
    with pytest.raises(UserError, match="nothing says what"):
        again(finished_lab, mlp.run_id)
    assert not (layout.artifacts / "reproductions").exists()


def test_the_command_kills_survived_exits_by_its_verdict(finished_lab: FinishedLab) -> None:
    recorded = finished_lab.run("causal_lm")
    command = [sys.executable, "-m", "scripts.cli", "reproduce", recorded.run_id]
    environment = {**os.environ, "NEXA_ROOT": str(finished_lab.root)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = finished_lab.layout.artifacts / "reproductions" / recorded.run_id
    until = time.monotonic() + 60
    while not any(folder.rglob("checkpoint_*.pt")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].startswith("REPRODUCED")
    rewrite(recorded.metrics, {"metrics.loss.value": 100.0})
    record_anew(finished_lab, recorded, "metrics.json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-2][:8]) == (3, "DIVERGED")
    assert done.stderr.splitlines()[-1] == f"error: run {recorded.run_id} was not reproduced within 0.001"


def test_the_first_step_that_differs_is_found(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    lines = [{"step": number, "loss": 1 / number} for number in range(1, 5)]
    a.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert first_split(a, a) is None
    lines[2]["loss"] = 0.25
    b.write_text("".join(json.dumps(line) + "\n" for line in lines))
    split = first_split(a, b)
    assert split is not None
    assert (split.step, split.name, split.recorded, split.repeated) == (3, "loss", 1 / 3, 0.25)
    b.write_text("".join(a.read_text().splitlines(keepends=True)[:3]))
    split = first_split(a, b)
    assert split is not None
    assert (split.step, split.name, split.repeated) == (4, "loss", None)


@pytest.mark.parametrize(
    ("recorded", "repeated", "largest"),
    [
        ({"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.5}, 0.0),
        ({"a": 2.0}, {"a": 2.5}, 0.25),
        ({"a": 1.0}, {"b": 1.0}, float("inf")),
        ({"a": float("nan")}, {"a": float("nan")}, 0.0),
        ({"a": 1.0}, {"a": float("nan")}, float("inf")),
    ],
)
def test_scores_are_held_against_the_recorded_ones(
    recorded: dict[str, float], repeated: dict[str, float], largest: float
) -> None:
    assert largest_difference(recorded, repeated) == pytest.approx(largest)


def test_the_shipped_teacher_has_a_record(tmp_path: Path) -> None:
    from nexa_ops.reproduce.record import read_record

    record = read_record(Layout(tmp_path), str(Path(__file__).parent.parent / "nexa_distill" / "teacher"))
    assert record.config().data.prepare == "nexa_distill/teacher/data.yaml"
    assert record.exported_weights is not None
    assert "predictions.parquet" in record.outputs
