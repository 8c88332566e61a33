"""What a scored split leaves on disk: metrics.json, predictions.parquet and their copies among the evaluation data."""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CleanSubset:
    """What is known of the score without the rows that the training data repeats."""

    training: str
    """The dataset that the model learned from."""
    num_overlapping: int | None
    """Rows that it repeats; None where nobody has looked."""
    scores: Scores | None
    note: str

    def as_json(self) -> dict[str, Any]:
        metrics = {} if self.scores is None else self.scores.metrics
        return {
            "training_dataset": self.training,
            "num_overlapping": self.num_overlapping,
            "metrics": {name: metric.as_json() for name, metric in metrics.items()},
            "note": self.note,
        }


def describe_scores(
    scores: Scores, spec: ModelSpec, *, dataset: str, split: str, step: int, clean: CleanSubset | None = None
) -> dict[str, Any]:
    """What `metrics.json` holds: every metric with its interval; no run id and no time, so that equal runs agree.

    Args:
        clean: the scores of the clean subset, of a dataset that is not the model's own.
    """
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
    if clean is not None:
        described["clean_subset"] = clean.as_json()
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
    evaluation = layout.evaluation
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
    lines += _metric_lines(described["metrics"])
    lines += [f"  note: {note}" for note in described.get("notes", [])]
    if (clean := described.get("clean_subset")) is not None:
        lines += _clean_lines(clean)
    return "\n".join(lines)


def _metric_lines(metrics: dict[str, Any]) -> Iterator[str]:
    for name, metric in metrics.items():
        interval = interval_text(metric["low"], metric["high"])
        yield f"  {name:<20} {metric['value']:>12.4f}   95% interval {interval}, {metric['num_rows']} rows"


def _clean_lines(clean: dict[str, Any]) -> Iterator[str]:
    if clean["num_overlapping"] is None:
        yield f"clean subset: unknown; {clean['note']}"
    elif clean["num_overlapping"] == 0:
        yield f"clean subset: all rows; none is repeated in the training rows of {clean['training_dataset']}"
    else:
        yield f"clean subset, without {clean['num_overlapping']} rows that training rows of {clean['training_dataset']} repeat"
        yield from _metric_lines(clean["metrics"]) if clean["metrics"] else iter([f"  note: {clean['note']}"])


def write_table(path: Path, table: pa.Table) -> None:
    with durable.create(path) as file:
        pq.write_table(table, file, compression="zstd")
