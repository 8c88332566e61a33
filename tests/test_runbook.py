"""The runbook works as written: its commands, paths, schema and snippets, in a fresh folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICK = "--override training.epochs=2 --override training.num_threads=1"


class Lab:
    """A folder that looks like a clone: the code is linked, the data and artefacts are its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("scripts", ".env", "requirements.txt", "POLICY.md", "nexa_train"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "configs", folder / "configs")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "NEXA_ROOT"}
        environment["OMP_NUM_THREADS"] = "1"  # busy machines make small operations on several threads very slow
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        return subprocess.run(
            command, shell=True, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def succeed(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A laboratory in which data was prepared and a first model trained."""
    lab = Lab(tmp_path_factory.mktemp("runbook"))
    lab.succeed("python -m nexa_data.prepare --config configs/data.yaml")
    lab.succeed("python scripts/cli.py train --config configs/default.yaml")
    return lab


def test_environment_provisioning(lab: Lab) -> None:
    lab.succeed("cp .env .env.local")
    ignored = subprocess.run(["git", "check-ignore", ".env.local"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert pins[-1] == "-e ."
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^ ]+", pin) for pin in pins[:-1])


def test_data_lifecycle(lab: Lab) -> None:
    snippet = """
from nexa_data.data_analysis.query_data import DataQuery

query = DataQuery()
teacher_df = query.get_teacher_inputs(version="v1")
pretrain_df = query.get_pretrain_dataset(shard="001")
print(len(teacher_df), len(pretrain_df))
"""
    (lab.folder / "snippet.py").write_text(snippet)
    teacher_rows, pretrain_rows = map(int, lab.succeed("python snippet.py").split())
    assert teacher_rows > 1000
    assert pretrain_rows > 1000
    for path in (
        "data/processed/training/manifests/digits_v1.json",
        "data/processed/training/test/digits_v1.parquet",
        "data/processed/training/pretrain/001.parquet",
        "data/processed/distillation/manifests/teacher_inputs_v1.json",
        "data/processed/distillation/teacher_inputs/teacher_inputs_v1.parquet",
    ):
        assert (lab.folder / path).exists(), path


def test_basic_training_takes_an_override(lab: Lab) -> None:
    out = lab.succeed(
        f"python scripts/cli.py train --config configs/default.yaml {QUICK} --override training.optimizer.lr=0.0001"
    )
    run_dir = Path(re.search(r"artifacts/runs/digits/digits_\d{8}_\d{6}\S*", out)[0])  # type: ignore[index]
    assert "lr: 0.0001" in (lab.folder / run_dir / "config.yaml").read_text()


def test_evaluating_models(lab: Lab) -> None:
    lab.succeed(
        "python scripts/cli.py evaluate --config configs/default.yaml "
        "--checkpoint artifacts/checkpoints/checkpoint_epoch0.pt"
    )
    metrics = json.loads((lab.folder / "artifacts/runs/digits/metrics.json").read_text())
    assert 0 < metrics["metrics"]["accuracy"]["low"] < metrics["metrics"]["accuracy"]["value"]
    evaluation = lab.folder / "data/processed/evaluation"
    assert list(evaluation.glob("predictions/digits_eval_*.parquet"))
    assert list(evaluation.glob("reports/digits_eval_*.json"))
    assert list(evaluation.glob("manifests/digits_eval_*.json"))


def test_hyperparameter_search(lab: Lab) -> None:
    command = f"python scripts/cli.py tune --config configs/default.yaml --max-trials 2 {QUICK}"
    out = lab.succeed(command)
    assert "random" in out
    assert "2 complete" in out
    (best,) = re.findall(r"^  (nexa train --config configs/default.yaml .*)$", out, re.MULTILINE)
    assert "--override training.optimizer.lr=" in best
    assert "--override model.parameters.dropout=" in best
    lab.succeed(best)
    assert lab.succeed(command) == out


def test_packaging(lab: Lab) -> None:
    lab.succeed("python scripts/cli.py package --config configs/default.yaml --output artifacts/package")
    assert list((lab.folder / "artifacts/package").glob("digits_*.tar.gz"))


def test_run_manifests(lab: Lab) -> None:
    newest = lab.folder / "runs/manifests/run_manifest.json"
    run_id = json.loads(newest.read_text())["run_id"]
    snippet = """
import json
from pathlib import Path

manifest_path = Path("runs/manifests/RUN.json")
manifest = json.loads(manifest_path.read_text())
print(f"Run {manifest['run_id']}: {manifest['metrics']}")
""".replace("RUN", run_id)
    (lab.folder / "manifest.py").write_text(snippet)
    assert lab.succeed("python manifest.py").startswith(f"Run {run_id}: {{'accuracy': 0.")
    manifest = json.loads(newest.read_text())
    assert re.fullmatch(r"digits_\d{8}_\d{6}(_\d+)?", run_id)
    assert (manifest["config"], manifest["version"], manifest["dataset"]) == ("configs/default.yaml", "v1", "digits_v1")
    assert (lab.folder / manifest["checkpoint"]).exists()
    assert (lab.folder / manifest["run_dir"]).is_dir()


def test_the_full_training_pipeline(lab: Lab) -> None:
    lab.succeed("python -m nexa_data.prepare --config configs/data.yaml")
    quick = "--override training.max_steps=25 --override evaluation.generation=null"
    lab.succeed(f"python -m nexa_train.train --config configs/baseline.yaml {quick}")
    judged = lab.run("python -m nexa_eval.judge --checkpoint artifacts/checkpoints/best.pt")
    assert judged.returncode in (0, 3), judged.stderr
    assert "gain_over_unigram at least" in judged.stdout
    out = lab.succeed("python scripts/cli.py package --checkpoint artifacts/checkpoints/best.pt")
    lab.succeed(f"nexa verify {out.split()[-1]}")


def test_troubleshooting(lab: Lab) -> None:
    assert list((lab.folder / "logs").glob("digits_*.log"))
    assert list((lab.folder / "logs").glob("digits_*/events.out.tfevents.*"))
    lab.succeed("nexa doctor")
    seed = lab.succeed(f"nexa train {QUICK} --override training.distributed.seed=3 --json")
    assert json.loads(seed)["dataset"] == "digits_v1"


def test_a_tracker_set_in_env_local_is_tried_and_stops_nothing(lab: Lab) -> None:
    settings = lab.folder / ".env.local"
    settings.write_text("MLFLOW_TRACKING_URI=http://127.0.0.1:1\n")
    try:
        done = lab.run(f"nexa train {QUICK} --override tracking.wait_seconds=60")
    finally:
        settings.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MLflow: http://127.0.0.1:1 cannot be reached: ") == 1
    run_id = re.findall(r"^run (\w+): ", done.stdout, re.MULTILINE)[0]
    assert f"nexa track-sync {run_id}" in done.stderr.splitlines()[-1]


def test_the_distillation_pipeline(lab: Lab) -> None:
    quick = (
        "--override training.max_steps=2 --override evaluation.generation.max_rows=2 --override training.num_threads=1"
    )
    lab.succeed("python -m nexa_distill.collect_teacher --max-samples 60")
    assert "pairs kept" in lab.succeed("python -m nexa_distill.filter_pairs --override filter.val=0.2")
    out = lab.succeed(f"python -m nexa_train.distill --config nexa_train/configs/baseline.yaml {quick}")
    assert "exact_match" in out
    folder = lab.folder / "data" / "processed" / "distillation"
    for kind, name in (
        ("teacher_outputs", "teacher_outputs"),
        ("filtered", "distilled"),
        ("rejected", "distilled"),
        ("sft_datasets", "distilled"),
    ):
        assert (folder / kind / f"{name}_v1.parquet").is_file()
