"""Judging: rubrics are checked before anything is computed, gates look at the interval's worse end."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_core.config.rubric import Gate
from nexa_core.errors import GateError, UserError
from nexa_eval.judge import RUBRICS, apply_gate, judge
from tests.conftest import FinishedLab


def write_rubric(path: Path, *gates: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump({"name": path.stem, "version": 3, "gates": list(gates)}))
    return str(path)


EASY = {"metric": "accuracy", "direction": "at_least", "threshold": 0.2}
HARD = {"metric": "log_loss", "direction": "at_most", "threshold": 0.0001}


def test_a_checkpoint_that_meets_every_gate_passes(finished_lab: FinishedLab) -> None:
    verdict = judge(
        finished_lab.checkpoint("mlp"),
        layout=finished_lab.layout,
        rubric=write_rubric(finished_lab.root / "easy.yaml", EASY),
    )
    assert verdict.passed
    verdict.require_pass()
    written = json.loads(verdict.path.read_text())
    assert written == verdict.as_json()
    assert written["rubric"]["version"] == 3
    report = finished_lab.layout.processed / "evaluation" / "reports" / f"{written['run_id']}_verdict.json"
    assert json.loads(report.read_text()) == written
    assert finished_lab.root / written["checkpoint"] == finished_lab.checkpoint("mlp")


def test_one_failed_gate_fails_the_checkpoint_and_the_verdict_says_which(finished_lab: FinishedLab) -> None:
    rubric = write_rubric(finished_lab.root / "mixed.yaml", EASY, HARD)
    verdict = judge(finished_lab.checkpoint("mlp"), layout=finished_lab.layout, rubric=rubric)
    assert [gate.passed for gate in verdict.gates] == [True, False]
    assert json.loads(verdict.path.read_text())["passed"] is False
    with pytest.raises(GateError, match="failed the rubric mixed: log_loss"):
        verdict.require_pass()


@pytest.mark.parametrize(("model", "default"), [("mlp", "classification"), ("causal_lm", "language_model")])
def test_without_a_rubric_the_one_for_the_models_task_applies(
    finished_lab: FinishedLab, model: str, default: str
) -> None:
    assert judge(finished_lab.checkpoint(model), layout=finished_lab.layout).rubric["name"] == default


def test_the_configs_rubric_applies_and_the_one_given_wins(finished_lab: FinishedLab) -> None:
    easy, hard = (
        write_rubric(finished_lab.root / name, gate) for name, gate in [("easy.yaml", EASY), ("hard.yaml", HARD)]
    )
    setting = [f"evaluation.rubric={easy}"]
    checkpoint, layout = finished_lab.checkpoint("mlp"), finished_lab.layout
    assert judge(checkpoint, layout=layout, overrides=setting).rubric["name"] == "easy"
    assert judge(checkpoint, layout=layout, overrides=setting, rubric=hard).rubric["name"] == "hard"


GATE_OF_LANGUAGE_MODELS = {"metric": "bits_per_byte", "direction": "at_most", "threshold": 2.0}
MISSPELT = {**EASY, "metric": "acuracy"}


@pytest.mark.parametrize(
    ("model", "rubric", "says"),
    [
        ("mlp", "clasification", "Unknown rubric 'clasification'. Did you mean 'classification'?"),
        ("mlp", [MISSPELT], "Unknown metric of a mlp 'acuracy'. Did you mean 'accuracy'?"),
        ("mlp", [GATE_OF_LANGUAGE_MODELS], "Unknown metric of a mlp 'bits_per_byte'"),
        ("causal_lm", [EASY], "Unknown metric of a causal_lm 'accuracy'"),
        ("causal_lm", [{**EASY, "metric": "exact_match"}], "evaluation.generation.max_rows=64"),
        ("mlp", [{**EASY, "treshold": 0.5}], "Did you mean 'gates.0.threshold'"),
        ("mlp", [{**EASY, "threshold": float("nan")}], "threshold"),
        ("mlp", [], "gates"),
    ],
)
def test_a_rubric_that_cannot_be_applied_is_refused_before_anything_is_evaluated(
    finished_lab: FinishedLab, model: str, rubric: Any, says: str
) -> None:
    if isinstance(rubric, list):
        rubric = write_rubric(finished_lab.root / "mine.yaml", *rubric)
    before = finished_lab.files()
    with pytest.raises(UserError) as caught:
        judge(finished_lab.checkpoint(model), layout=finished_lab.layout, rubric=rubric)
    assert says in str(caught.value)
    assert finished_lab.files() == before


METRICS: dict[str, dict[str, Any]] = {
    "accuracy": {"value": 0.9, "low": 0.85, "high": 0.95, "num_rows": 100},
    "loss": {"value": 1.0, "low": 0.9, "high": None, "num_rows": 100},
    "gain": {"value": 1.0, "low": None, "high": 2.0, "num_rows": 100},
}


@pytest.mark.parametrize(
    ("metric", "settings", "passes"),
    [
        ("accuracy", {"direction": "at_least", "threshold": 0.85}, True),
        ("accuracy", {"direction": "at_least", "threshold": 0.86}, False),
        ("accuracy", {"direction": "at_least", "threshold": 0.86, "counts": "point"}, True),
        ("accuracy", {"direction": "at_most", "threshold": 0.94}, False),
        ("accuracy", {"direction": "at_most", "threshold": 0.94, "counts": "point"}, True),
        ("accuracy", {"direction": "at_least", "threshold": 0.5, "min_rows": 100}, True),
        ("accuracy", {"direction": "at_least", "threshold": 0.5, "min_rows": 101}, False),
        ("loss", {"direction": "at_most", "threshold": 1e9}, False),
        ("loss", {"direction": "at_least", "threshold": 0.9}, True),
        ("gain", {"direction": "at_least", "threshold": -1e9}, False),
        ("auroc", {"direction": "at_least", "threshold": 0.0}, False),
    ],
)
def test_a_gate_holds_when_its_number_meets_the_threshold(
    metric: str, settings: dict[str, Any], *, passes: bool
) -> None:
    result = apply_gate(Gate(metric=metric, **settings), METRICS)
    assert result.passed == passes
    assert metric in result.reason
    json.dumps(result.counted, allow_nan=False)


def test_every_built_in_rubric_fits_a_model(finished_lab: FinishedLab) -> None:
    fits = {"classification": "mlp", "language_model": "causal_lm"}
    assert {path.stem for path in RUBRICS.glob("*.yaml")} == set(fits)
    for rubric, model in fits.items():
        judge(finished_lab.checkpoint(model), layout=finished_lab.layout, rubric=rubric)
