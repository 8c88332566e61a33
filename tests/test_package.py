"""Packing: byte-equal, traced to a run by digest, refused when anything was altered."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_core import digests
from nexa_core.errors import GateError, UserError
from nexa_models.checkpoint import load_checkpoint
from nexa_ops import contents
from nexa_ops.package import package
from nexa_ops.verify import verify
from nexa_train.train import run
from tests.conftest import FINISHED_MODELS, FinishedLab, read_package
from tests.labs import make_config, write_config


@pytest.mark.parametrize("model", FINISHED_MODELS)
def test_a_package_holds_what_it_promises_and_verifies(pristine_lab: FinishedLab, model: str) -> None:
    files = read_package(pristine_lab.package(model))
    assert set(files) - {contents.TOKENIZER} == contents.REQUIRED
    assert (contents.TOKENIZER in files) == (model == "causal_lm")
    report = verify(pristine_lab.package(model))
    assert report.passed, report.as_text()
    assert "agree bit for bit" in report.as_text()
    assert json.loads(files["manifest.json"]) == pristine_lab.manifest(model)
    assert files["metrics.json"] == pristine_lab.run(model).metrics.read_bytes()


def test_the_same_checkpoint_packs_to_the_same_bytes(finished_lab: FinishedLab, tmp_path: Path) -> None:
    checkpoint = finished_lab.checkpoint("mlp")
    first = package(layout=finished_lab.layout, checkpoint_path=checkpoint, output=tmp_path / "a")
    again = package(layout=finished_lab.layout, checkpoint_path=checkpoint, output=tmp_path / "b")
    assert first.path.read_bytes() == again.path.read_bytes() == finished_lab.package("mlp").read_bytes()
    assert first.sha256 == digests.of_file(first.path)


def test_a_copy_of_a_checkpoint_elsewhere_finds_its_run(finished_lab: FinishedLab, tmp_path: Path) -> None:
    copy = tmp_path / "my best model (2).pt"
    shutil.copy(finished_lab.checkpoint("mlp"), copy)
    packed = package(layout=finished_lab.layout, checkpoint_path=copy, output=tmp_path / "out")
    assert packed.path.read_bytes() == finished_lab.package("mlp").read_bytes()


def test_of_equal_runs_a_checkpoint_belongs_to_the_one_in_whose_folder_it_lies(
    finished_lab: FinishedLab, tmp_path: Path
) -> None:
    first = finished_lab.run("mlp")
    twin = run(make_config("mlp"), layout=finished_lab.layout)
    assert twin.checkpoint.read_bytes() == finished_lab.checkpoint("mlp").read_bytes()
    for folder in (first, twin.run):
        packed = package(
            layout=finished_lab.layout,
            checkpoint_path=folder.checkpoints / twin.checkpoint.name,
            output=tmp_path / "out",
        )
        assert packed.run_id == folder.run_id


def test_a_checkpoint_that_is_not_the_runs_result_is_scored_for_its_package(finished_lab: FinishedLab) -> None:
    other = finished_lab.run("mlp").checkpoints / "checkpoint_epoch0.pt"
    assert other.resolve() != finished_lab.checkpoint("mlp").resolve()
    packed = package(layout=finished_lab.layout, checkpoint_path=other)
    assert packed.path.name == f"{finished_lab.run('mlp').run_id}_checkpoint_epoch0.tar.gz"
    files = read_package(packed.path)
    scores, manifest = json.loads(files["metrics.json"]), json.loads(files["manifest.json"])
    assert scores["metrics"] != json.loads(finished_lab.run("mlp").metrics.read_text())["metrics"]
    assert manifest["metrics"]["accuracy"] == scores["metrics"]["accuracy"]["value"]
    assert manifest["checkpoint"].endswith("checkpoint_epoch0.pt")


def test_a_config_stands_for_the_newest_run_of_exactly_that_config(finished_lab: FinishedLab, tmp_path: Path) -> None:
    run(make_config("mlp", training={"epochs": 1}), layout=finished_lab.layout)
    packed = package(layout=finished_lab.layout, config_path=finished_lab.config("mlp"))
    assert packed.run_id == finished_lab.run("mlp").run_id
    other = write_config(tmp_path / "other.yaml", make_config("mlp", training={"epochs": 3}))
    with pytest.raises(UserError, match=r"No finished run has exactly the config.*--checkpoint .*\.pt"):
        package(layout=finished_lab.layout, config_path=other)


def test_an_experiment_without_runs_cannot_be_packed(finished_lab: FinishedLab, tmp_path: Path) -> None:
    config = make_config("mlp").model_copy(update={"experiment": "never"})
    path = write_config(tmp_path / "c.yaml", config)
    with pytest.raises(UserError, match=r"No run of experiment 'never'.*Train one first"):
        package(layout=finished_lab.layout, config_path=path)


def test_the_proof_has_as_many_rows_as_asked_for_and_no_other_columns(
    finished_lab: FinishedLab, tmp_path: Path
) -> None:
    packed = package(layout=finished_lab.layout, checkpoint_path=finished_lab.checkpoint("mlp"), verification_rows=7)
    rows = pq.read_table(io.BytesIO(read_package(packed.path)["proof_rows.parquet"]))
    assert rows.num_rows == 7
    assert rows.column_names == ["row_id", "features", "label"]
    assert "7 rows, a fixed part of the split's 181" in verify(packed.path).as_text()


def test_a_model_of_the_users_own_is_packed_and_needs_trust_to_be_verified(
    finished_lab: FinishedLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_module.py").write_text(OWN_MODEL)
    config = make_config("mlp", model={"name": "own_module:build", "parameters": {"scale": 2.0}})
    packed = package(layout=finished_lab.layout, checkpoint_path=run(config, layout=finished_lab.layout).checkpoint)
    with pytest.raises(UserError, match="--trust own_module:build"):
        verify(packed.path)
    assert verify(packed.path, trusted="own_module:build").passed


OWN_MODEL = """
from torch import nn

class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = nn.Linear(64, 10), scale

    def forward(self, features):
        return self.layer(features.flatten(1)) * self.scale

def build(spec, scale):
    return Scaled(scale)
"""


def refused(lab: FinishedLab, kind: type[Exception], says: str, **arguments: Any) -> None:
    before = lab.files()
    with pytest.raises(kind, match=says):
        package(layout=lab.layout, **{"checkpoint_path": lab.checkpoint("mlp"), **arguments})
    assert lab.files() == before


def test_without_a_checkpoint_nothing_is_packed(finished_lab: FinishedLab) -> None:
    refused(finished_lab, UserError, "No checkpoint", checkpoint_path=finished_lab.root / "none.pt")
    refused(finished_lab, UserError, "Say what to pack", checkpoint_path=None)
    refused(finished_lab, UserError, "not by both", config_path=finished_lab.config("mlp"))


def test_an_altered_checkpoint_is_not_packed(finished_lab: FinishedLab) -> None:
    path = finished_lab.checkpoint("mlp")
    data = bytearray(path.read_bytes())
    data[data.index(b"/data/0") + 100] ^= 1
    path.write_bytes(data)
    refused(finished_lab, UserError, "damaged")


def test_a_checkpoint_with_a_harmless_altered_byte_is_not_packed_either(finished_lab: FinishedLab) -> None:
    """One that no content depends on: the checkpoint still loads, but it is not the file that was recorded."""
    path = finished_lab.checkpoint("mlp")
    path.write_bytes(path.read_bytes() + b"\0")
    load_checkpoint(path)
    refused(finished_lab, GateError, "does not have the digest of any checkpoint")


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet"])
@pytest.mark.parametrize("change", ["altered", "deleted"])
def test_altered_results_are_not_packed(finished_lab: FinishedLab, name: str, change: str) -> None:
    path = finished_lab.run("mlp").path / name
    data = path.read_bytes()
    path.unlink()
    if change == "altered":
        path.write_bytes(data.replace(b"1", b"2", 1) if name.endswith("json") else data[:-1])
    refused(finished_lab, GateError, f"{name} does not have the digest")


def test_an_altered_manifest_is_not_packed(finished_lab: FinishedLab) -> None:
    path = finished_lab.layout.run_manifests / f"{finished_lab.run('mlp').run_id}.json"
    manifest = finished_lab.manifest("mlp")
    path.write_text(json.dumps({**manifest, "metrics": {**manifest["metrics"], "accuracy": 0.999}}))
    refused(finished_lab, GateError, "tells other scores")


@pytest.mark.parametrize("has_recorded", [True, False])
def test_an_unfinished_run_is_not_packed(finished_lab: FinishedLab, *, has_recorded: bool) -> None:
    """Killed before its digests were recorded, or between that and its manifest, which comes last."""
    folder, checkpoint = finished_lab.run("mlp"), finished_lab.checkpoint("mlp")
    if not has_recorded:
        lineage = json.loads(folder.lineage.read_text())
        folder.lineage.write_text(json.dumps({**lineage, "outputs": {}}))
    (finished_lab.layout.run_manifests / f"{folder.run_id}.json").unlink()
    before = finished_lab.files()
    with pytest.raises(UserError, match=f"Run {folder.run_id} has not finished"):
        package(layout=finished_lab.layout, checkpoint_path=checkpoint)
    assert finished_lab.files() == before


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_package(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=16k none "$1" || exit 99\n'
        '"$2" -m scripts.cli package --checkpoint "$3" --output "$1"\n'
        'echo "code $? left: $(ls -A "$1")"'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable, pristine_lab.checkpoint("mlp")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NEXA_ROOT": str(pristine_lab.root)},
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.stdout == "code 1 left: \n"
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
