"""Judging a checkpoint: evaluate it and hold the scores against a versioned rubric."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.config import load_config
from nexa_core.config.rubric import Gate, Rubric
from nexa_core.errors import GateError, UserError
from nexa_core.lookup import unknown
from nexa_core.paths import Layout
from nexa_eval.evaluate import EvaluationResult, evaluate, utc_now
from nexa_models.results import metrics_text

RUBRICS = Path(__file__).parent / "rubrics"


@dataclass(frozen=True)
class GateResult:
    metric: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What a rubric says of a checkpoint."""

    passed: bool
    rubric: dict[str, Any]
    """Name, version and digest of the rubric."""
    gates: tuple[GateResult, ...]
    evaluation: EvaluationResult
    path: Path

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "rubric": self.rubric,
            "gates": [asdict(gate) for gate in self.gates],
            "run_id": self.evaluation.run.run_id,
            "checkpoint": str(self.evaluation.checkpoint_path),
            "checkpoint_sha256": digests.of_file(self.evaluation.checkpoint_path),
        }

    def as_text(self, layout: Layout) -> str:
        gates = "\n".join(f"  {'pass' if gate.passed else 'FAIL'}  {gate.reason}" for gate in self.gates)
        title = (
            f"{'PASSED' if self.passed else 'FAILED'}: rubric {self.rubric['name']} version {self.rubric['version']}"
        )
        return f"{metrics_text(self.evaluation.metrics)}\n{title}\n{gates}\nverdict {layout.relative(self.path)}"

    def require_pass(self) -> None:
        """Raises GateError when a gate failed."""
        if not self.passed:
            failed = ", ".join(gate.metric for gate in self.gates if not gate.passed)
            raise GateError(f"The checkpoint failed the rubric {self.rubric['name']}: {failed}")


def judge(
    checkpoint_path: Path,
    *,
    layout: Layout,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    rubric: str | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Verdict:
    """Evaluate and judge; the rubric is the one given, the config's, or the default for the model's task.

    Raises:
        UserError: as `evaluate`; or the rubric is unknown, or asks for a metric that this model does not have.
    """
    result = evaluate(checkpoint_path, layout=layout, config_path=config_path, overrides=overrides, now=now)
    default = "language_model" if result.config.model.name == "causal_lm" else "classification"
    rubric_path = find_rubric(rubric or result.config.evaluation.rubric or default)
    loaded = load_config(rubric_path, Rubric)
    gates = tuple(apply_gate(gate, result.metrics["metrics"], rubric_path) for gate in loaded.gates)
    about = {"name": loaded.name, "version": loaded.version, "sha256": digests.of_file(rubric_path)}
    verdict = Verdict(all(gate.passed for gate in gates), about, gates, result, result.run.path / "verdict.json")
    durable.write_json(verdict.path, verdict.as_json())
    copy = layout.processed / "evaluation" / "reports" / f"{result.run.run_id}_verdict.json"
    durable.write_json(copy, verdict.as_json())
    return verdict


def find_rubric(name: str) -> Path:
    """The file of a rubric: one of the built-in names, or a path."""
    built_in = {path.stem: path for path in RUBRICS.glob("*.yaml")}
    if name in built_in:
        return built_in[name]
    if not Path(name).exists():
        raise UserError(f"{unknown('rubric', name, built_in)}, or the path of a YAML file")
    return Path(name)


def apply_gate(gate: Gate, metrics: dict[str, dict[str, Any]], where: Path) -> GateResult:
    """Whether one gate holds, and the sentence that says why."""
    if gate.metric not in metrics:
        raise UserError(f"{where}: {unknown('metric', gate.metric, metrics)}")
    metric = metrics[gate.metric]
    at_least = gate.direction == "at_least"
    worse_end = metric["low"] if at_least else metric["high"]
    counted = worse_end if gate.counts == "interval" else metric["value"]
    infinite = math.inf if gate.direction == "at_most" else -math.inf
    counted = infinite if counted is None else counted
    holds = counted >= gate.threshold if at_least else counted <= gate.threshold
    enough = metric["num_rows"] >= gate.min_rows
    what = "the interval's worse end" if gate.counts == "interval" else "the score"
    reason = f"{gate.metric} {gate.direction.replace('_', ' ')} {gate.threshold:g}: {what} is {counted:.4f}"
    if not enough:
        reason += f", but measured on {metric['num_rows']} rows, fewer than the {gate.min_rows} it asks for"
    return GateResult(gate.metric, holds and enough, reason)


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("judge")
