"""Verifying a package: unpacked safely, its model rebuilt, its predictions and its score made again and compared."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nexa_core.errors import GateError
from nexa_models.numerics import make_deterministic
from nexa_models.predict import predict, score
from nexa_models.spec import ModelSpec
from nexa_ops.archive import unpack
from nexa_ops.contents import read_model, read_proof, read_spec

# Another processor or library sums in another order; differences of this size come from there, larger ones do not.
TOLERANCE = 1e-4


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
        spec = read_spec(folder)
        model = read_model(folder, spec, trusted=trusted)
        proof, rows, recorded = read_proof(folder)
        predictions = predict(model, spec, rows, proof.asked, device=torch.device("cpu"))
        scores = score(predictions, spec)
        num_weights = sum(weight.numel() for weight in model.parameters())
        of_all = "all" if proof.num_rows == proof.split_rows else "a fixed part"
        return Report(
            tarball,
            (
                Check("files", True, f"{num_files} files, every digest holds"),
                Check("model", True, f"{spec.model['name']} with {num_weights:,} weights, rebuilt"),
                compare_predictions(predictions, recorded, spec),
                _compare_metric(
                    proof.metric,
                    scores.metrics[proof.metric].value,
                    proof.value,
                    f"{proof.num_rows} rows, {of_all} of the split's {proof.split_rows}",
                ),
            ),
        )


def compare_predictions(ours: pa.Table, recorded: pa.Table, spec: ModelSpec) -> Check:
    """Whether two prediction tables agree: bit for bit, or within `TOLERANCE` with the same choices."""
    if ours.equals(recorded):
        return Check("predictions", True, f"{ours.num_rows} predictions agree bit for bit")
    if not ours["row_id"].equals(recorded["row_id"]):
        return Check("predictions", False, "they are of other rows")
    distance = float(np.abs(_numbers(ours, spec) - _numbers(recorded, spec)).max(initial=0.0))
    num_changed = sum(
        one != other
        for one, other in zip(ours["prediction"].to_pylist(), recorded["prediction"].to_pylist(), strict=True)
    )
    says = f"largest difference {distance:.3g}, {num_changed} of {ours.num_rows} choices differ (allowed: {TOLERANCE:g}, 0)"
    return Check("predictions", distance <= TOLERANCE and num_changed == 0, says)


def _numbers(predictions: pa.Table, spec: ModelSpec) -> np.ndarray:
    if spec.is_language_model:
        tokens = np.maximum(predictions["num_tokens"].to_numpy(), 1)
        return predictions["loss"].to_numpy() / tokens
    return predictions["probabilities"].combine_chunks().flatten().to_numpy()


def _compare_metric(name: str, ours: float, recorded: float, on: str) -> Check:
    says = f"{ours:.6f} on {on}" + ("" if ours == recorded else f"; recorded was {recorded:.6f}")
    return Check(name, abs(ours - recorded) <= TOLERANCE, says)
