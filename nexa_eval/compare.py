"""Comparing two checkpoints on the same held-out rows: a paired test of every score, and the rows on which they differ."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nexa_core import durable
from nexa_core.errors import GateError, UserError
from nexa_core.lookup import unknown
from nexa_core.paired import PairedDifference
from nexa_core.paths import Layout
from nexa_data.datasets import find_dataset
from nexa_eval.evaluate import Assignment, EvaluationResult, assign, carry_out, utc_now
from nexa_eval.paired_scores import MORE_IS_BETTER, compare_predictions, right_rows
from nexa_models.results import write_table
from nexa_models.scores import interval_text, main_score

NUM_SHOWN = 3
MOST_SHOWN_CHARS = 60
SMALLEST_SHOWN = 1e-300


@dataclass(frozen=True)
class Comparison:
    """What the first checkpoint is beside the second."""

    first: EvaluationResult
    second: EvaluationResult
    metric: str
    """The score that decides."""
    alpha: float
    differences: dict[str, PairedDifference]
    changed: pa.Table
    """The rows that one of them gets right and the other does not; none where nothing is right or wrong."""
    path: Path
    rows_path: Path

    @property
    def is_better(self) -> bool:
        """Whether the first is better on the deciding score, and chance alone is less likely than `alpha`."""
        found = self.differences[self.metric]
        gain = found.difference if MORE_IS_BETTER[self.metric] else -found.difference
        return gain > 0 and found.p_value < self.alpha

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "alpha": self.alpha,
            "is_better": self.is_better,
            "dataset": self.first.metrics["dataset"],
            "split": self.first.metrics["split"],
            "first": _about(self.first),
            "second": _about(self.second),
            "differences": {name: found.as_json() for name, found in self.differences.items()},
        }

    def as_text(self, layout: Layout) -> str:
        metrics = self.first.metrics
        lines = [f"{metrics['dataset']}, {metrics['split']} split", f"  A: {self.first.checkpoint}"]
        lines += [f"  B: {self.second.checkpoint}"]
        lines += [line for name, found in self.differences.items() for line in self._lines(name, found)]
        lines += [*_examples(self.changed), self._verdict()]
        return "\n".join([*lines, f"comparison {layout.relative(self.path)}, rows {layout.relative(self.rows_path)}"])

    def require_better(self) -> None:
        """Raises GateError when the first is not better."""
        if not self.is_better:
            raise GateError(self._verdict())

    def _lines(self, name: str, found: PairedDifference) -> list[str]:
        return [
            f"  {name:<14} A {found.first:.4f}   B {found.second:.4f}   A - B {found.difference:+.4f}, 95% interval "
            f"{interval_text(*_ends(found))}   p = {found.p_value:.2g}",
            f"  {'':<14} {found.num_rows} rows: A better on {found.num_first}, B on {found.num_second}; {found.test}, "
            f"{found.interval}",
        ]

    def _verdict(self) -> str:
        found = self.differences[self.metric]
        says = "A is better than B" if self.is_better else "A is not shown to be better than B"
        return f"{says} by {self.metric}: p = {max(found.p_value, SMALLEST_SHOWN):.2g}, alpha {self.alpha:g}"


def compare(
    checkpoint_path: Path,
    other_path: Path,
    *,
    layout: Layout,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    metric: str | None = None,
    alpha: float = 0.01,
    now: Callable[[], datetime] = utc_now,
) -> Comparison:
    """Evaluate both checkpoints on the same rows and compare them row by row.

    Args:
        dataset: `<name>_<version>` of the rows; without it both checkpoints have to be of the same dataset.
        overrides: of both checkpoints' configs, e.g. `evaluation.split=val`.
        metric: the score that decides; the main one of the task without it.

    Raises:
        UserError: as `evaluate`; or the two are not evaluated on the same rows, or there is no such score.
        GateError: one of them has diverged.
    """
    if metric is not None and metric not in MORE_IS_BETTER:
        raise UserError(unknown("metric to compare by", metric, MORE_IS_BETTER))
    given = [*overrides, *_naming(layout, dataset), "evaluation.save_predictions=true"]
    first, second = (assign(path, layout=layout, overrides=given) for path in (checkpoint_path, other_path))
    _check_same_rows(first, second)
    ours, theirs = carry_out(first, now=now), carry_out(second, now=now)
    predictions, others = pq.read_table(ours.run.predictions), pq.read_table(theirs.run.predictions)
    differences = compare_predictions(predictions, others, first.dataset.labels)
    chosen = metric or main_score(differences) or next(iter(differences))
    if chosen not in differences:
        raise UserError(f"{chosen} was not measured on these rows. There: {', '.join(differences)}.{_advice(chosen)}")
    rows = _rows(predictions, others)
    run = ours.run
    comparison = Comparison(
        ours,
        theirs,
        chosen,
        alpha,
        differences,
        _changed(rows),
        run.path / "comparison.json",
        run.path / "comparison.parquet",
    )
    write_table(comparison.rows_path, rows)
    for path in (layout.evaluation / "reports" / f"{run.run_id}_comparison.json", comparison.path):
        durable.write_json(path, comparison.as_json())
    return comparison


def _naming(layout: Layout, key: str | None) -> list[str]:
    """The overrides that name a dataset."""
    if key is None:
        return []
    dataset = find_dataset(layout, key)
    named = {"dataset": dataset.name, "version": dataset.version, "category": dataset.category, "prepare": None}
    return [f"data.{setting}={json.dumps(value)}" for setting, value in named.items()]


def _check_same_rows(first: Assignment, second: Assignment) -> None:
    rows = [(each.dataset.key, each.dataset.fingerprint, each.config.evaluation.split) for each in (first, second)]
    if rows[0] != rows[1]:
        named = [f"{key}, {split} split" for key, _, split in rows]
        raise UserError(
            f"They would not be compared on the same rows: {first.checkpoint_path} on {named[0]}, {second.checkpoint_path} on "
            f"{named[1]}. Name the rows: --data <name>_<version> --override evaluation.split=test"
        )
    if first.config.evaluation != second.config.evaluation:
        theirs = second.config.evaluation.resolved()
        differing = [key for key, value in first.config.evaluation.resolved().items() if theirs[key] != value]
        raise UserError(
            f"Their evaluation settings differ in {', '.join(differing)}; set them for both with --override evaluation.<key>=..."
        )


def _advice(metric: str) -> str:
    if metric in ("exact_match", "final_answer"):
        return " Completions are compared where they are asked for: --override evaluation.generation.max_rows=500"
    return ""


def _rows(first: pa.Table, second: pa.Table) -> pa.Table:
    """A row for each: what was wanted, what both said, and whether it was right; null where that was not asked."""
    is_right = right_rows(first), right_rows(second)
    return pa.table(
        {
            "row_id": first["row_id"],
            "target": first["target"],
            "prediction_a": first["prediction"],
            "prediction_b": second["prediction"],
            "is_right_a": pa.array(is_right[0], pa.bool_()),
            "is_right_b": pa.array(is_right[1], pa.bool_()),
        }
    )


def _changed(rows: pa.Table) -> pa.Table:
    flags = zip(rows["is_right_a"].to_pylist(), rows["is_right_b"].to_pylist(), strict=True)
    return rows.filter(pa.array([None not in pair and pair[0] != pair[1] for pair in flags], pa.bool_()))


def _examples(changed: pa.Table) -> list[str]:
    """The first few rows that only one of them gets right."""
    rows = changed.to_pylist()
    lines = []
    for label, key in (("only A is right", "is_right_a"), ("only B is right", "is_right_b")):
        found = [row for row in rows if row[key]]
        lines += [f"  {label} on {len(found)} rows" + (", e.g." if found else "")]
        lines += [
            f"    {row['row_id'][:12]}  wanted {_short(row['target'])}  A {_short(row['prediction_a'])}  "
            f"B {_short(row['prediction_b'])}"
            for row in found[:NUM_SHOWN]
        ]
    return lines if rows else []


def _short(text: str) -> str:
    """A text's end, where answers stand, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= MOST_SHOWN_CHARS else f"...{line[-MOST_SHOWN_CHARS:]}")


def _about(result: EvaluationResult) -> dict[str, Any]:
    return {
        "run_id": result.run.run_id,
        "checkpoint": result.checkpoint,
        "checkpoint_sha256": result.checkpoint_digest,
        "step": result.metrics["step"],
    }


def _ends(found: PairedDifference) -> tuple[float | None, float | None]:
    ends = found.as_json()
    return ends["low"], ends["high"]
