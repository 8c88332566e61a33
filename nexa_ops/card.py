"""The model card of a package: what it is, what it learned from, how good it is, and how to check that."""

from typing import Any

from nexa_core.config.data import ChatRows, Rows
from nexa_core.manifest import Manifest
from nexa_data.datasets import Dataset
from nexa_models.checkpoint import Checkpoint
from nexa_models.scores import interval_text
from nexa_models.spec import ModelSpec
from nexa_ops.inputs import InputReader
from nexa_ops.proof import Merged

CARD = """\
# {run_id}

A `{model}` trained by NexaCompute on dataset `{dataset}`, step {step}.{base}

## Scores
On {num_rows} rows of the {split} split, which the model was not trained on; intervals are at 95%.

| metric | value | interval | rows |
| --- | --- | --- | --- |
{scores}
{notes}
## Data
{sources}
The dataset's fingerprint is `{dataset_fingerprint}`; the run's is `{fingerprint}`.

## Use
`nexa verify <this package>` rebuilds the model, predicts the rows in `proof_rows.parquet` and compares.
`nexa predict <this package> --input rows.jsonl` predicts {inputs}.

## Limits
The scores speak of rows like those of `{dataset}`. Nothing was measured on other data, on fairness or on safety.
"""


def write_card(
    manifest: Manifest,
    metrics: dict[str, Any],
    checkpoint: Checkpoint,
    dataset: Dataset,
    rows: Rows,
    merged: Merged | None,
) -> str:
    """The card as Markdown; a function of its arguments, so that packing twice gives the same bytes."""
    spec = checkpoint.spec
    scores = [
        f"| {name} | {score['value']:.4f} | {interval_text(score['low'], score['high'])} | {score['num_rows']} |"
        for name, score in metrics["metrics"].items()
    ]
    return CARD.format(
        run_id=manifest["run_id"],
        model=spec.model["name"],
        dataset=dataset.key,
        step=checkpoint.step,
        base=_base(spec, merged),
        num_rows=max(value["num_rows"] for value in metrics["metrics"].values()),
        split=metrics["split"],
        scores="\n".join(scores),
        notes="".join(f"\n{note}\n" for note in metrics.get("notes", [])),
        sources="\n".join(_source_line(source) for source in dataset.manifest["sources"]),
        dataset_fingerprint=dataset.fingerprint,
        fingerprint=checkpoint.fingerprint,
        inputs=_inputs(spec, rows),
    )


def _base(spec: ModelSpec, merged: Merged | None) -> str:
    """What it was made from, where its weights were there already."""
    if spec.pretrained is None:
        return ""
    weights = [f"- {name} (sha256 `{digest}`)" for name, digest in sorted(spec.pretrained.files.items())]
    how = "" if merged is None else f" It learned through adapters, which lie in its weights now: {merged.as_text()}."
    return "\n".join([f" It began as `{spec.model['path']}`, whose license holds for it as well:", *weights, how])


def _inputs(spec: ModelSpec, rows: Rows) -> str:
    """The rows that `predict` takes, as an example."""
    reader = InputReader(spec, rows)
    columns = reader.source_columns or (reader.own_column,)
    value = '"..."'
    if isinstance(rows, ChatRows):
        user = next((theirs for theirs, ours in rows.roles.items() if ours == "user"), "user")
        value = f'[{{"{rows.role}": "{user}", "{rows.content}": "..."}}]'
    if spec.kind == "features":
        value = "0.0" if len(columns) > 1 else "[...]"
    shown = ", ".join(f'"{column}": {value}' for column in columns)
    shape = "x".join(map(str, spec.feature_shape or ()))
    return f"rows like `{{{shown}}}`" + (f", {shape} numbers each" if shape else "")


def _source_line(source: dict[str, Any]) -> str:
    return f"- {source['file']} (sha256 `{source['sha256']}`)"
