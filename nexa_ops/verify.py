"""Verifying a package: unpacked safely, its model rebuilt, its predictions and its score made again and compared."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from nexa_core.config import RunConfig, load_config
from nexa_core.errors import GateError, UserError
from nexa_core.manifest import read_manifest
from nexa_core.metrics import Metric
from nexa_models.lora import merged_settings
from nexa_models.numerics import make_deterministic
from nexa_models.predict import predict
from nexa_models.scores import interval_text
from nexa_models.spec import ModelSpec
from nexa_ops import contents
from nexa_ops.archive import unpack
from nexa_ops.proof import TOLERANCE, Proof, difference, read_proof, score_of


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    says: str


@dataclass(frozen=True)
class Report:
    """What a verification found."""

    tarball: Path
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        return {"package": str(self.tarball), "passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def as_text(self) -> str:
        lines = [f"  {'pass' if check.passed else 'FAIL'}  {check.name}: {check.says}" for check in self.checks]
        return "\n".join([*lines, f"{'VERIFIED' if self.passed else 'NOT VERIFIED'} {self.tarball}"])

    def require_pass(self) -> None:
        """Raises GateError when a check failed."""
        if not self.passed:
            failed = ", ".join(check.name for check in self.checks if not check.passed)
            raise GateError(f"{self.tarball} does not do what it says: {failed}")


def verify(tarball: Path, *, trusted: str | None = None) -> Report:
    """Hold a package against its own proof, on the CPU.

    Raises:
        UserError: there is no such package, or its model is code that the user has not said to trust.
        GateError: it cannot be unpacked or read at all.
    """
    make_deterministic()
    with tempfile.TemporaryDirectory(prefix="nexa-verify-") as scratch:
        folder = unpack(tarball, Path(scratch))
        num_files = sum(1 for _ in folder.iterdir())
        spec, _ = contents.read_packed(folder)
        model = contents.read_model(folder, spec, trusted=trusted)
        proof, rows, recorded = read_proof(folder, spec)
        predictions = predict(model, spec, rows, proof.asked, device=torch.device("cpu"))
        score = score_of(predictions, spec)
        num_weights = sum(weight.numel() for weight in model.parameters())
        checks = [
            Check("files", True, f"{num_files} files, every digest holds"),
            Check("model", True, f"{spec.model['name']} with {num_weights:,} weights, rebuilt"),
            _compare_predictions(predictions, recorded, spec),
            _compare_score(proof, score),
            _compare_records(folder, spec, proof, score.value),
        ]
        if proof.merged is not None:
            checks.append(Check("merge", proof.merged.is_near, f"when packed, {proof.merged.as_text()}"))
        return Report(tarball, tuple(checks))


def _compare_predictions(ours: pa.Table, recorded: pa.Table, spec: ModelSpec) -> Check:
    """Whether two prediction tables agree: bit for bit, or within `TOLERANCE` with the same choices."""
    if ours.equals(recorded):
        return Check("predictions", True, f"{ours.num_rows} predictions agree bit for bit")
    distance, num_changed = difference(ours, recorded, spec)
    says = f"largest difference {distance:.3g}, {num_changed} of {ours.num_rows} choices differ"
    return Check(
        "predictions", distance <= TOLERANCE and num_changed == 0, f"{says} (allowed: {TOLERANCE:g}, no choice)"
    )


def _compare_score(proof: Proof, score: Metric) -> Check:
    value, told = score.value, score.as_json()
    on = f"{proof.num_rows} rows, {'all' if proof.is_whole else 'a fixed part'} of the split's {proof.split_rows}"
    recorded = "" if value == proof.value else f"; recorded was {proof.value:.6f}"
    says = f"{value:.6f} ({interval_text(told['low'], told['high'])}) on {on}{recorded}"
    return Check(proof.metric, abs(value - proof.value) <= TOLERANCE, says)


def _compare_records(folder: Path, spec: ModelSpec, proof: Proof, value: float) -> Check:
    """Whether the config is this model's, and the manifest and `metrics.json` tell its scores alike."""
    try:
        config = load_config(folder / contents.CONFIG, RunConfig)
        manifest = read_manifest(folder / contents.MANIFEST)
    except UserError as error:
        return Check("records", False, str(error).replace(f"{folder}/", "").splitlines()[0])
    if merged_settings(config.model.resolved()) != spec.model:
        return Check("records", False, f"{contents.CONFIG} describes another model than {contents.MODEL}")
    scores = _scores_in(folder / contents.METRICS)
    if scores != manifest["metrics"]:
        return Check("records", False, f"{contents.METRICS} and {contents.MANIFEST} tell different scores")
    claimed = scores.get(proof.metric)
    if claimed is None or (proof.is_whole and abs(claimed - value) > TOLERANCE):
        return Check("records", False, f"{contents.METRICS} claims {proof.metric} {claimed}; it is {value:.6f}")
    return Check("records", True, "config, manifest and metrics agree with the model and with each other")


def _scores_in(path: Path) -> dict[str, float]:
    metrics = contents.read_object(path).get("metrics")
    if not isinstance(metrics, dict) or not all(isinstance(metric, dict) for metric in metrics.values()):
        raise GateError(f"{path.name} has no metrics")
    return {name: metric.get("value") for name, metric in metrics.items()}
