"""Packing a checkpoint: digests verified first, one tarball out, unpacked and checked again before it takes its name."""

import io
import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from nexa_data.datasets import Dataset, open_dataset

from nexa_core import digests, durable
from nexa_core.config import RunConfig, load_config
from nexa_core.errors import GateError, UserError
from nexa_core.lineage import read_lineage, run_of_file
from nexa_core.manifest import Manifest, list_manifests, read_manifest
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_models.checkpoint import Checkpoint, load_checkpoint, model_of
from nexa_models.numerics import make_deterministic
from nexa_models.predict import Asked, main_metric, predict, score
from nexa_models.results import asked_by, describe_scores, score_split
from nexa_models.weights import weights_to_bytes
from nexa_ops import contents
from nexa_ops.archive import pack
from nexa_ops.card import write_card
from nexa_ops.verify import verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packed:
    path: Path
    run_id: str
    checkpoint: Path
    sha256: str
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "checkpoint": str(self.checkpoint)}

    def as_text(self) -> str:
        return (
            f"packed {self.checkpoint} of run {self.run_id}: {self.size_bytes:,} bytes, sha256 {self.sha256}\n"
            f"package {self.path}"
        )


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
        GateError: a digest does not match what was recorded, or the finished package fails its own check.
    """
    make_deterministic()
    path = checkpoint_path or _checkpoint_of(layout, config_path)
    checkpoint = load_checkpoint(path)
    run = _run_of(layout, path)
    manifest = read_manifest(layout.run_manifests / f"{run.run_id}.json")
    is_result = digests.of_file(layout.absolute(manifest["checkpoint"])) == digests.of_file(path)
    name = run.run_id if is_result else f"{run.run_id}_{path.resolve().stem}"
    files = _collect(layout, run, manifest, path, checkpoint, is_result=is_result, verification_rows=verification_rows)
    target = (output or layout.packages) / f"{name}.tar.gz"
    _pack_checked(target, name, files)
    return Packed(target, run.run_id, path, digests.of_file(target), target.stat().st_size)


def _checkpoint_of(layout: Layout, config_path: Path | None) -> Path:
    if config_path is None:
        raise UserError("Say what to pack: --checkpoint <path>, or --config <file> for the newest finished run of it.")
    config = load_config(config_path, RunConfig)
    for manifest in reversed(list_manifests(layout)):
        if manifest["run_dir"].split("/")[-2:-1] == [config.experiment] and manifest.get("checkpoint"):
            return layout.absolute(manifest["checkpoint"])
    raise UserError(
        f"No run of experiment '{config.experiment}' ({config_path}) has finished, so there is no checkpoint to pack. "
        f"Train one first: nexa train --config {config_path}"
    )


def _run_of(layout: Layout, path: Path) -> RunFolder:
    """The run that made this checkpoint, its recorded digests checked."""
    run = run_of_file(layout, path)
    if run is None:
        beside = RunFolder(path.resolve().parent.parent)
        if beside.lineage.exists() and not (layout.run_manifests / f"{beside.run_id}.json").exists():
            raise UserError(f"Run {beside.run_id} has not finished; finish it first: nexa train ... --resume")
        raise GateError(
            f"{path} does not have the digest of any checkpoint that a finished run recorded; it was altered, or its "
            f"run is not below {layout.runs}. It is not packed."
        )
    lineage = read_lineage(run)
    assert lineage is not None
    for recorded in (run.metrics, run.predictions):
        digest = lineage["outputs"].get(layout.relative(recorded))
        if digest is not None and (not recorded.exists() or digests.of_file(recorded) != digest):
            raise GateError(f"{recorded} does not have the digest that run {run.run_id} recorded. Nothing is packed.")
    return run


def _collect(
    layout: Layout,
    run: RunFolder,
    manifest: Manifest,
    path: Path,
    checkpoint: Checkpoint,
    *,
    is_result: bool,
    verification_rows: int,
) -> dict[str, bytes]:
    config = RunConfig.model_validate_json(json.dumps(checkpoint.config))
    dataset = open_dataset(layout, config.data.dataset, config.data.version)
    if dataset.fingerprint != checkpoint.dataset["fingerprint"]:
        raise GateError(f"Dataset {dataset.key} was made anew since the run; the package could not prove its score.")
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    if not is_result:
        logger.info("%s is not the run's result: scoring it for the package", path)
        metrics = _score_anew(checkpoint, dataset, config)
    described = checkpoint.spec.as_json()
    tokenizer = described.pop("tokenizer")
    lineage = {**(read_lineage(run) or {}), "packed_checkpoint": digests.of_file(path)}
    files = {
        contents.WEIGHTS: weights_to_bytes(model_of(checkpoint)),
        contents.MODEL: _json_bytes(described),
        contents.CONFIG: yaml.safe_dump(checkpoint.config, sort_keys=False, allow_unicode=True).encode(),
        contents.METRICS: _json_bytes(metrics),
        contents.MANIFEST: _json_bytes(manifest),
        contents.LINEAGE: _json_bytes(lineage),
        contents.CARD: write_card(manifest, metrics, checkpoint, dataset).encode(),
        **_prove(checkpoint, dataset, config, metrics, verification_rows),
    }
    return files if tokenizer is None else {**files, contents.TOKENIZER: tokenizer.encode("utf-8")}


def _score_anew(checkpoint: Checkpoint, dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    split = config.evaluation.split
    device = torch.device("cpu")
    _, scores = score_split(model_of(checkpoint), checkpoint.spec, dataset, split, config.evaluation, device=device)
    return describe_scores(scores, checkpoint.spec, dataset=dataset.key, split=split, step=checkpoint.step)


def _prove(
    checkpoint: Checkpoint, dataset: Dataset, config: RunConfig, metrics: dict[str, Any], num_rows: int
) -> dict[str, bytes]:
    """The files of the package's proof: rows of the evaluated split, first by row id, and what the model says of them."""
    table = dataset.read_split(config.evaluation.split)
    rows = table.take(pc.sort_indices(table["row_id"])[:num_rows])
    asked: Asked = asked_by(config.evaluation)
    predictions = predict(model_of(checkpoint), checkpoint.spec, rows, asked, device=torch.device("cpu"))
    metric, _ = main_metric(checkpoint.spec)
    value = score(predictions, checkpoint.spec).metrics[metric].value
    if rows.num_rows == table.num_rows and abs(value - metrics["metrics"][metric]["value"]) > 1e-4:
        recorded = metrics["metrics"][metric]["value"]
        raise GateError(
            f"The checkpoint scores {metric} {value:.6f} now and {recorded:.6f} is recorded. Nothing is packed."
        )
    proof = contents.Proof(rows.num_rows, table.num_rows, metric, value, asked)
    return {
        contents.PROOF: _json_bytes(asdict(proof)),
        contents.PROOF_ROWS: _parquet_bytes(rows),
        contents.PROOF_PREDICTIONS: _parquet_bytes(predictions),
    }


def _pack_checked(target: Path, name: str, files: dict[str, bytes]) -> None:
    """Pack aside, verify, and only then let the package take its name."""
    with tempfile.TemporaryDirectory(prefix="nexa-package-") as scratch:
        aside = Path(scratch) / target.name
        pack(aside, name, files)
        custom = yaml.safe_load(files[contents.CONFIG])["model"]["name"]
        verify(aside, trusted=custom).require_pass()
        durable.copy(aside, target)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
