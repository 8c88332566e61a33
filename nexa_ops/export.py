"""Exporting a language model: a folder that transformers reads, with the records of the run that made it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nexa_core import digests, durable
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_models.causal_lm import CausalLm
from nexa_models.checkpoint import Checkpoint, load_checkpoint, model_of
from nexa_models.hugging_face import Dtype, folder_files
from nexa_models.lora import compare_logits, merge, merged_spec
from nexa_models.numerics import make_deterministic
from nexa_models.pretrained import WEIGHTS
from nexa_models.scores import interval_text
from nexa_models.spec import ModelSpec
from nexa_ops.origin import Origin, origin_of
from nexa_ops.proof import Merged

CARD = "README.md"
RUN_FOLDER = "run"
PROBE_SHAPE = (4, 8)

CARD_TEXT = """\
# {run_id}

A causal language model ({architecture}, {num_parameters:,} parameters, {dtype}) that reads up to {max_tokens} tokens,
trained by NexaCompute on dataset `{dataset}`, step {step}. What made it lies in `run/`: its config, manifest, lineage
and scores.

- the run's fingerprint: `{fingerprint}`
- the dataset's fingerprint: `{dataset_fingerprint}`
- sha256 of `model.safetensors`: `{weights_sha256}`

## Scores
On the {split} split, which it was not trained on; intervals are at 95%.

| metric | value | interval | rows |
| --- | --- | --- | --- |
{scores}

## Use
As a teacher: `local:<this folder>`. To go on training it: `model: {{name: causal_lm, path: <this folder>}}`. With transformers:
`AutoModelForCausalLM.from_pretrained("<this folder>")`.

## Limits
The scores speak of rows like those of `{dataset}`. Nothing was measured on other data, on fairness or on safety.
"""


@dataclass(frozen=True)
class Exported:
    path: Path
    run_id: str
    checkpoint: Path
    weights_sha256: str
    size_bytes: int
    """Of all its files."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "checkpoint": str(self.checkpoint)}

    def as_text(self) -> str:
        return (
            f"exported {self.checkpoint} of run {self.run_id}: {self.size_bytes:,} bytes, {WEIGHTS} sha256 "
            f"{self.weights_sha256}\nfolder {self.path}"
        )


def export(
    checkpoint_path: Path, output: Path, *, layout: Layout, dtype: Dtype = "float32", replace_files: bool = False
) -> Exported:
    """Write the checkpoint's model into a folder; adapters are merged into its weights.

    Files of other names that lie in the folder stay. `config.json` is written last: without it nothing reads the folder.

    Raises:
        UserError: it is no language model, no finished run made it, or the folder holds another model.
        GateError: the checkpoint or its run's records have been altered, or its adapters cannot be merged.
    """
    make_deterministic()
    checkpoint = load_checkpoint(checkpoint_path)
    if not checkpoint.spec.is_language_model:
        raise UserError(
            f"{checkpoint_path} holds a {checkpoint.spec.model['name']}, and transformers has a form for language models "
            "only; pack it: nexa package --checkpoint ..."
        )
    origin = origin_of(layout, checkpoint_path)
    model, spec = _whole_model(checkpoint)
    files = _records(origin) | folder_files(model, spec, dtype=dtype)
    digest = digests.of_bytes(files[WEIGHTS])
    files = {CARD: _card(origin, checkpoint, model, dtype, digest).encode(), **files}
    if not replace_files:
        _check_free(output, files)
    for name, data in files.items():
        durable.write_bytes(output / name, data)
    return Exported(output, origin.run.run_id, checkpoint_path, digest, sum(map(len, files.values())))


def _whole_model(checkpoint: Checkpoint) -> tuple[CausalLm, ModelSpec]:
    model, spec = model_of(checkpoint), checkpoint.spec
    assert isinstance(model, CausalLm)
    if spec.lora is None:
        return model, spec
    whole = merge(model)
    ids = torch.arange(torch.Size(PROBE_SHAPE).numel()).remainder(len(model.unigram_log_probs_V)).view(PROBE_SHAPE)
    distance, largest = compare_logits(model, whole, [{"ids": ids, "at": torch.arange(ids.numel())}])
    merged = Merged(max_difference=distance, max_logit=largest, was_quantized=spec.lora.quantization is not None)
    if not merged.is_near:
        raise GateError(f"The adapters cannot be merged: {merged.as_text()}. Nothing is exported.")
    assert isinstance(whole, CausalLm)
    return whole, merged_spec(spec)


def _records(origin: Origin) -> dict[str, bytes]:
    """What the run wrote of itself."""
    records = {
        "manifest.json": _json(origin.manifest),
        "lineage.json": _json(origin.lineage),
        "metrics.json": origin.run.metrics.read_bytes(),
        "config.yaml": origin.run.config.read_bytes(),
    }
    return {f"{RUN_FOLDER}/{name}": data for name, data in records.items()}


def _card(origin: Origin, checkpoint: Checkpoint, model: CausalLm, dtype: Dtype, digest: str) -> str:
    metrics = json.loads(origin.run.metrics.read_bytes())
    scores = [
        f"| {name} | {score['value']:.4f} | {interval_text(score['low'], score['high'])} | {score['num_rows']} |"
        for name, score in metrics["metrics"].items()
    ]
    return CARD_TEXT.format(
        run_id=origin.name,
        architecture=model.transformer.config.model_type,
        num_parameters=model.transformer.num_parameters(),
        dtype=dtype,
        max_tokens=checkpoint.spec.max_tokens,
        dataset=f"{checkpoint.dataset['name']}_{checkpoint.dataset['version']}",
        dataset_fingerprint=checkpoint.dataset["fingerprint"],
        step=checkpoint.step,
        fingerprint=checkpoint.fingerprint,
        weights_sha256=digest,
        split=metrics["split"],
        scores="\n".join(scores),
    )


def _check_free(output: Path, files: dict[str, bytes]) -> None:
    others = [name for name, data in files.items() if (output / name).exists() and (output / name).read_bytes() != data]
    if others:
        raise UserError(
            f"{output} holds other files already: {', '.join(others)}. Name another folder, or pass --replace."
        )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
