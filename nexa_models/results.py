"""What a scored split leaves on disk: metrics.json, predictions.parquet and their copies among the evaluation data."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from nexa_core import durable
from nexa_core.config.run import Evaluation
from nexa_core.errors import UserError
from nexa_core.metrics import Scores
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_data.datasets import Dataset
from nexa_models.predict import Asked, DivergedModel, predict, score
from nexa_models.scores import interval_text
from nexa_models.spec import ModelSpec


def describe_scores(scores: Scores, spec: ModelSpec, *, dataset: str, split: str, step: int) -> dict[str, Any]:
    """What `metrics.json` holds: every metric with its interval; no run id and no time, so that equal runs agree."""
    described: dict[str, Any] = {
        "dataset": dataset,
        "split": split,
        "step": step,
        "metrics": {name: metric.as_json() for name, metric in scores.metrics.items()},
    }
    if scores.confusion_matrix is not None:
        described["confusion_matrix"] = {
            "labels": list(spec.labels),
            "rows_are_targets": [list(row) for row in scores.confusion_matrix],
        }
    if scores.notes:
        described["notes"] = list(scores.notes)
    return described


def score_split(
    model: nn.Module,
    spec: ModelSpec,
    dataset: Dataset,
    split: str,
    settings: Evaluation,
    *,
    device: torch.device,
) -> tuple[pa.Table, Scores]:
    """Predictions and scores of a model on one split.

    Raises:
        UserError: the split holds no rows, so there is nothing to score.
        DivergedModel: its predictions are no numbers.
    """
    table = dataset.read_split(split)
    if table.num_rows == 0:
        raise UserError(
            f"Dataset {dataset.key} has no rows in its {split} split; set evaluation.split, or prepare more."
        )
    predictions = predict(model, spec, table, asked_by(settings), device=device)
    try:
        return predictions, score(predictions, spec)
    except DivergedModel as error:
        raise DivergedModel(f"The {spec.model['name']} cannot be scored on {dataset.key} {split}: {error}") from None


def asked_by(settings: Evaluation) -> Asked:
    generation = settings.generation
    return Asked(
        batch_size=settings.batch_size,
        generate_rows=generation.max_rows if generation else 0,
        max_new_tokens=generation.max_new_tokens if generation else 0,
    )


def write_results(
    layout: Layout, run: RunFolder, described: dict[str, Any], predictions: pa.Table | None
) -> list[Path]:
    """Write metrics and predictions to the run's folder and to `data/processed/evaluation/`; returns the run's own files."""
    evaluation = layout.processed / "evaluation"
    durable.write_json(run.metrics, described)
    durable.write_json(evaluation / "reports" / f"{run.run_id}.json", {"run_id": run.run_id, **described})
    if predictions is None:
        return [run.metrics]
    write_table(run.predictions, predictions)
    durable.copy(run.predictions, evaluation / "predictions" / f"{run.run_id}.parquet")
    return [run.metrics, run.predictions]


def metrics_text(described: dict[str, Any]) -> str:
    """A line for each metric of a `metrics.json`, with its interval and sample size."""
    lines = [f"{described['dataset']}, {described['split']} split, step {described['step']}"]
    for name, metric in described["metrics"].items():
        interval = interval_text(metric["low"], metric["high"])
        lines.append(f"  {name:<20} {metric['value']:>12.4f}   95% interval {interval}, {metric['num_rows']} rows")
    lines += [f"  note: {note}" for note in described.get("notes", [])]
    return "\n".join(lines)


def write_table(path: Path, table: pa.Table) -> None:
    with durable.create(path) as file:
        pq.write_table(table, file, compression="zstd")
