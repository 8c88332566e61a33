"""Judging a checkpoint: evaluate it and hold the scores against a versioned rubric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.config import RunConfig, load_config
from nexa_core.config.rubric import Gate, Rubric
from nexa_core.errors import GateError, UserError
from nexa_core.lookup import unknown
from nexa_core.paths import Layout
from nexa_eval.evaluate import EvaluationResult, assign, carry_out, utc_now
from nexa_models.results import metrics_text
from nexa_models.scores import CLASSIFIER_SCORES, LANGUAGE_MODEL_SCORES, interval_text

RUBRICS = Path(__file__).parent / "rubrics"


@dataclass(frozen=True)
class GateResult:
    """What one gate asked for, what it found, and the sentence that says so."""

    metric: str
    direction: str
    threshold: float
    counts: str
    counted: float | None
    """The number held against the threshold; None where there is none, or it is infinite."""
    num_rows: int
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
            "checkpoint": self.evaluation.checkpoint,
            "checkpoint_sha256": self.evaluation.checkpoint_digest,
        }

    def as_text(self, layout: Layout) -> str:
        gates = "\n".join(f"  {'pass' if gate.passed else 'FAIL'}  {gate.reason}" for gate in self.gates)
        says = "PASSED" if self.passed else "FAILED"
        title = f"{says}: rubric {self.rubric['name']} version {self.rubric['version']}"
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
        UserError: as `evaluate`; or the rubric is unknown, or asks for a metric that this model does not get. Nothing
            is evaluated or written then.
        GateError: the model has diverged.
    """
    assignment = assign(checkpoint_path, layout=layout, config_path=config_path, overrides=overrides)
    config = assignment.config
    default = "language_model" if config.model.name == "causal_lm" else "classification"
    rubric_path = find_rubric(rubric or config.evaluation.rubric or default)
    loaded = load_config(rubric_path, Rubric)
    check_rubric(loaded, rubric_path, config)
    about = {"name": loaded.name, "version": loaded.version, "sha256": digests.of_file(rubric_path)}
    result = carry_out(assignment, now=now)
    gates = tuple(apply_gate(gate, result.metrics["metrics"]) for gate in loaded.gates)
    verdict = Verdict(all(gate.passed for gate in gates), about, gates, result, result.run.path / "verdict.json")
    copy = layout.evaluation / "reports" / f"{result.run.run_id}_verdict.json"
    for path in (copy, verdict.path):
        durable.write_json(path, verdict.as_json())
    return verdict


def find_rubric(name: str) -> Path:
    """The file of a rubric: one of the built-in names, or a path."""
    built_in = {path.stem: path for path in RUBRICS.glob("*.yaml")}
    if name in built_in:
        return built_in[name]
    if not Path(name).is_file():
        raise UserError(f"{unknown('rubric', name, built_in)}; or the path of a YAML file")
    return Path(name)


def check_rubric(rubric: Rubric, where: Path, config: RunConfig) -> None:
    """Refuse a rubric with a metric that the evaluation will not give.

    Raises:
        UserError: the metric is not one of this kind of model, or is measured only with other settings.
    """
    is_language_model = config.model.name == "causal_lm"
    names = LANGUAGE_MODEL_SCORES if is_language_model else CLASSIFIER_SCORES
    what = f"metric of a {config.model.name}"
    for gate in rubric.gates:
        if gate.metric not in names:
            raise UserError(f"{where}: {unknown(what, gate.metric, names)}")
        if gate.metric == "exact_match" and config.evaluation.generation is None:
            raise UserError(
                f"{where}: exact_match is measured on completions, and the config asks for none; "
                "add --override evaluation.generation.max_rows=64"
            )


def apply_gate(gate: Gate, metrics: Mapping[str, Mapping[str, Any]]) -> GateResult:
    """Whether one gate holds. A metric that could not be measured on these rows fails it, whatever the threshold."""
    wanted = f"{gate.metric} {gate.direction.replace('_', ' ')} {gate.threshold:g}"
    asked = (gate.metric, gate.direction, gate.threshold, gate.counts)
    if gate.metric not in metrics:
        return GateResult(*asked, None, 0, False, f"{wanted}: it could not be measured on these rows; see the notes")
    metric = metrics[gate.metric]
    at_least = gate.direction == "at_least"
    worse_end = metric["low"] if at_least else metric["high"]
    counted: float | None = worse_end if gate.counts == "interval" else metric["value"]
    # An interval's end without a bound, None, meets no threshold.
    holds = counted is not None and (counted >= gate.threshold if at_least else counted <= gate.threshold)
    enough = metric["num_rows"] >= gate.min_rows
    what = "the interval's worse end" if gate.counts == "interval" else "the score"
    reason = f"{wanted}: {what} is {'without bound' if counted is None else f'{counted:.4f}'}"
    reason += f" ({interval_text(metric['low'], metric['high'])})" if gate.counts == "value" else ""
    if not enough:
        reason += f", but measured on {metric['num_rows']} rows, fewer than the {gate.min_rows} it asks for"
    return GateResult(*asked, counted, metric["num_rows"], holds and enough, reason)


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("judge")
