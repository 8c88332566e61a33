"""Packing a checkpoint: digests verified first, one tarball out, unpacked and checked again before it takes its name."""

import io
import json
import logging
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from pydantic import TypeAdapter
from torch import nn

from nexa_core import digests, durable
from nexa_core.config import RunConfig
from nexa_core.config.data import Rows
from nexa_core.errors import GateError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, open_dataset
from nexa_eval.evaluate import own_config
from nexa_models.checkpoint import Checkpoint, load_checkpoint, model_of
from nexa_models.encoding import encode
from nexa_models.lora import compare_logits, merge, merged_spec
from nexa_models.numerics import make_deterministic
from nexa_models.predict import batches, predict
from nexa_models.results import asked_by, describe_scores, score_split
from nexa_models.spec import ModelSpec
from nexa_models.weights import weights_to_bytes
from nexa_ops import contents
from nexa_ops.archive import pack
from nexa_ops.card import write_card
from nexa_ops.origin import Origin, choose_checkpoint, origin_of, scores_in
from nexa_ops.proof import MAX_ROWS, TOLERANCE, Merged, Proof, difference, main_score_of, proof_columns, score_of
from nexa_ops.verify import verify

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Packed:
    path: Path
    run_id: str
    checkpoint: Path
    sha256: str
    size_bytes: int
    merged: Merged | None
    """Of a model with adapters, how near it came to them."""

    def as_json(self) -> dict[str, Any]:
        merged = None if self.merged is None else self.merged.resolved()
        return {**asdict(self), "path": str(self.path), "checkpoint": str(self.checkpoint), "merged": merged}

    def as_text(self) -> str:
        return ("" if self.merged is None else f"{self.merged.as_text()}\n") + (
            f"packed {self.checkpoint} of run {self.run_id}: {self.size_bytes:,} bytes, sha256 {self.sha256}\n"
            f"package {self.path}"
        )


@dataclass(frozen=True)
class ProofRows:
    """The rows that travel with the model."""

    table: pa.Table
    split_rows: int
    """Rows of the whole split that they are taken from."""


def package(
    *,
    layout: Layout,
    checkpoint_path: Path | None = None,
    config_path: Path | None = None,
    output: Path | None = None,
    verification_rows: int = 256,
) -> Packed:
    """Pack the checkpoint given, or the result of the newest finished run of the config given.

    Raises:
        UserError: there is no checkpoint, or no finished run made it, or its dataset is gone.
        GateError: a digest does not match what was recorded, adapters cannot be merged, or the finished package fails
            its own check.
    """
    make_deterministic()
    path = choose_checkpoint(layout, checkpoint_path, config_path)
    checkpoint = load_checkpoint(path)
    origin = origin_of(layout, path)
    dataset = _dataset_of(layout, checkpoint)
    rows = _proof_rows(checkpoint, path, dataset, num_rows=min(verification_rows, MAX_ROWS))
    model, merged = _whole_model(checkpoint, rows)
    whole = replace(checkpoint, spec=merged_spec(checkpoint.spec), model=model.state_dict())
    files = _collect(origin, path, whole, model, dataset, rows, merged)
    target = (output or layout.packages) / f"{origin.name}.tar.gz"
    _pack_checked(target, origin.name, files, trusted=whole.spec.model["name"])
    return Packed(target, origin.run.run_id, path, digests.of_file(target), target.stat().st_size, merged)


def merge_checked(model: nn.Module, spec: ModelSpec, rows: pa.Table) -> tuple[nn.Module, Merged]:
    """The model with its adapters merged into its weights, and how near its logits on `rows` stay.

    Raises:
        GateError: the merged model says something else.
    """
    whole, device = merge(model), next(model.parameters()).device
    # A row at a time: with a large vocabulary, the logits of many would not fit into memory.
    inputs = (batch.inputs for batch in batches(encode(rows, spec), 1, device))
    distance, largest = compare_logits(model, whole, inputs)
    if not math.isfinite(distance + largest):
        raise GateError("The adapters cannot be merged: logits are NaN or infinite. Nothing is packed.")
    was_quantized = spec.lora is not None and spec.lora.quantization is not None
    merged = Merged(max_difference=distance, max_logit=largest, was_quantized=was_quantized)
    if not merged.is_near:
        raise GateError(f"The adapters cannot be merged: {merged.as_text()}. Nothing is packed.")
    return whole.to(CPU), merged


def _dataset_of(layout: Layout, checkpoint: Checkpoint) -> Dataset:
    category = checkpoint.config["data"].get("category", "training")
    dataset = open_dataset(layout, checkpoint.dataset["name"], checkpoint.dataset["version"], category=category)
    if dataset.fingerprint != checkpoint.dataset["fingerprint"]:
        raise GateError(f"Dataset {dataset.key} was made anew since the run; the package could not prove its score.")
    return dataset


def _proof_rows(checkpoint: Checkpoint, path: Path, dataset: Dataset, *, num_rows: int) -> ProofRows:
    """Rows of the evaluated split, first by row id."""
    table = dataset.read_split(own_config(checkpoint, path).evaluation.split).select(proof_columns(checkpoint.spec))
    return ProofRows(table.take(pc.sort_indices(table["row_id"])[:num_rows]), table.num_rows)


def _whole_model(checkpoint: Checkpoint, rows: ProofRows) -> tuple[nn.Module, Merged | None]:
    """The checkpoint's model as it is packed: adapters are merged into the weights."""
    model = model_of(checkpoint)
    return (model, None) if checkpoint.spec.lora is None else merge_checked(model, checkpoint.spec, rows.table)


def _collect(
    origin: Origin,
    path: Path,
    checkpoint: Checkpoint,
    model: nn.Module,
    dataset: Dataset,
    rows: ProofRows,
    merged: Merged | None,
) -> dict[str, bytes]:
    config = own_config(checkpoint, path)
    metrics = json.loads(origin.run.metrics.read_bytes())
    if not origin.is_result:
        logger.info("%s is not the run's result: scoring it for the package", path)
        metrics = _score_anew(model, checkpoint, dataset, config)
    manifest = {**origin.manifest, "checkpoint": origin.recorded, "metrics": scores_in(metrics)}
    columns: Rows = TypeAdapter(Rows).validate_json(json.dumps(dataset.manifest["config"]["rows"]))
    described = {**checkpoint.spec.as_json(), "rows": columns.resolved()}
    tokenizer = described.pop("tokenizer")
    files = {
        contents.WEIGHTS: weights_to_bytes(model),
        contents.MODEL: _json_bytes(described),
        contents.CONFIG: yaml.safe_dump(checkpoint.config, sort_keys=False, allow_unicode=True).encode(),
        contents.METRICS: _json_bytes(metrics),
        contents.MANIFEST: _json_bytes(manifest),
        contents.LINEAGE: _json_bytes({**origin.lineage, "packed_checkpoint": digests.of_file(path)}),
        contents.CARD: write_card(manifest, metrics, checkpoint, dataset, columns, merged).encode(),
        **_prove(origin, checkpoint, model, config, metrics, rows, merged),
    }
    return files if tokenizer is None else {**files, contents.TOKENIZER: tokenizer.encode("utf-8")}


def _score_anew(model: nn.Module, checkpoint: Checkpoint, dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    split = config.evaluation.split
    _, scores = score_split(model, checkpoint.spec, dataset, split, config.evaluation, device=CPU)
    return describe_scores(scores, checkpoint.spec, dataset=dataset.key, split=split, step=checkpoint.step)


def _prove(
    origin: Origin,
    checkpoint: Checkpoint,
    model: nn.Module,
    config: RunConfig,
    metrics: dict[str, Any],
    rows: ProofRows,
    merged: Merged | None,
) -> dict[str, bytes]:
    """The files of the package's proof: its rows, and what the model says of them."""
    spec, asked = checkpoint.spec, asked_by(config.evaluation)
    predictions = predict(model, spec, rows.table, asked, device=CPU)
    proof = Proof(
        num_rows=rows.table.num_rows,
        split_rows=rows.split_rows,
        metric=main_score_of(spec),
        value=score_of(predictions, spec).value,
        batch_size=asked.batch_size,
        generate_rows=asked.generate_rows,
        max_new_tokens=asked.max_new_tokens,
        merged=merged,
    )
    _check_against_run(origin, predictions, proof, metrics, checkpoint)
    return {
        contents.PROOF: _json_bytes(proof.resolved()),
        contents.PROOF_ROWS: _parquet_bytes(rows.table),
        contents.PROOF_PREDICTIONS: _parquet_bytes(predictions),
    }


def _check_against_run(
    origin: Origin, predictions: pa.Table, proof: Proof, metrics: dict[str, Any], checkpoint: Checkpoint
) -> None:
    """Hold what the model says now against what the run recorded: its predictions of these rows, and its score."""
    recorded_value = metrics["metrics"][proof.metric]["value"]
    if proof.is_whole and abs(proof.value - recorded_value) > TOLERANCE:
        raise GateError(
            f"The checkpoint scores {proof.metric} {proof.value:.6f} now and {recorded_value:.6f} is recorded. "
            "Nothing is packed."
        )
    if not (origin.is_result and origin.run.predictions.exists()):
        return
    recorded = pq.read_table(origin.run.predictions)
    recorded = recorded.take(pc.index_in(predictions["row_id"], recorded["row_id"]))
    distance, _ = difference(predictions, recorded, checkpoint.spec)
    if not distance <= TOLERANCE:
        raise GateError(
            f"The checkpoint's predictions differ from {origin.run.predictions} by up to {distance:.3g}. Nothing is packed."
        )


def _pack_checked(target: Path, name: str, files: dict[str, bytes], *, trusted: str) -> None:
    """Pack aside, verify, and only then let the package take its name."""
    with tempfile.TemporaryDirectory(prefix="nexa-package-") as scratch:
        aside = Path(scratch) / target.name
        pack(aside, name, files)
        verify(aside, trusted=trusted).require_pass()
        durable.copy(aside, target)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
