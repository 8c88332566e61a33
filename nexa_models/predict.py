"""From a model and rows to a table of predictions, and from predictions to scores."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from nexa_core.errors import GateError
from nexa_core.metrics import Scores, classification_scores, language_model_scores
from nexa_models.causal_lm import CausalLm
from nexa_models.encoding import IGNORED, Batch, Encoded, encode
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import load_tokenizer, special_ids

CLASSIFICATION_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),
        ("probabilities", pa.list_(pa.float64())),
    ]
)
LANGUAGE_MODEL_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),  # null where no text was asked for
        ("loss", pa.float64()),  # nats, summed over the row's learned tokens
        ("unigram_loss", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_bytes", pa.int64()),
    ]
)


class DivergedModel(GateError):
    """A model whose predictions are no numbers, so that there is nothing to score."""


@dataclass(frozen=True)
class Asked:
    """How predictions are made."""

    batch_size: int
    generate_rows: int = 0
    """Rows with a prompt that a language model also completes in text, the first ones."""
    max_new_tokens: int = 0


def predict(model: nn.Module, spec: ModelSpec, table: pa.Table, asked: Asked, *, device: torch.device) -> pa.Table:
    """A row of predictions for each row of `table`, in its order; `target` is null where it has no label.

    Probabilities and losses are NaN where the model overflows.
    """
    model.eval()
    encoded = encode(table, spec)
    with torch.inference_mode():
        if spec.is_language_model:
            return _predict_text(model, spec, table, encoded, asked, device)
        return _predict_classes(model, spec, table, encoded, asked, device)


def score(predictions: pa.Table, spec: ModelSpec) -> Scores:
    """The metrics of a table that `predict` made; a function of the table alone.

    Raises:
        DivergedModel: a probability or loss in it is NaN or infinite.
    """
    _check_finite(predictions, spec)
    if spec.is_language_model:
        exact = [
            math.nan if prediction is None else float(prediction.strip() == target.strip())
            for prediction, target in zip(
                predictions["prediction"].to_pylist(), predictions["target"].to_pylist(), strict=True
            )
        ]
        return language_model_scores(
            nll_N=predictions["loss"].to_numpy(),
            num_tokens_N=predictions["num_tokens"].to_numpy(),
            num_bytes_N=predictions["num_bytes"].to_numpy(),
            exact_match_N=np.array(exact),
            unigram_nll_N=predictions["unigram_loss"].to_numpy(),
        )
    index = {label: position for position, label in enumerate(spec.labels)}
    targets_N = np.array([index[label] for label in predictions["target"].to_pylist()], dtype=np.int64)
    return classification_scores(targets_N, predicted_numbers(predictions, spec))


def predicted_numbers(predictions: pa.Table, spec: ModelSpec) -> np.ndarray:
    """What a table of predictions says in numbers: probabilities (rows, classes), or losses (rows, 1) per token."""
    if spec.is_language_model:
        num_tokens = np.maximum(predictions["num_tokens"].to_numpy(), 1)
        return (predictions["loss"].to_numpy() / num_tokens)[:, None]
    flat = predictions["probabilities"].combine_chunks().flatten().to_numpy()
    return flat.reshape(predictions.num_rows, len(spec.labels))


def complete(
    model: nn.Module,
    spec: ModelSpec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    device: torch.device,
) -> list[str | None]:
    """A language model's greedy completions; None for a prompt that leaves no room in its `max_tokens`.

    A completion ends after `max_new_tokens`, or earlier where the model's `max_tokens` are full.
    """
    assert spec.tokenizer is not None
    assert isinstance(model, CausalLm)
    tokenizer = load_tokenizer(spec.tokenizer)
    special = special_ids(tokenizer)
    prompt_ids = [[special.begin, *encoding.ids] for encoding in tokenizer.encode_batch_fast(list(prompts))]
    rooms = [min(max_new_tokens, spec.model["parameters"]["max_tokens"] - len(ids)) for ids in prompt_ids]
    texts: list[str | None] = [None] * len(prompts)
    with torch.inference_mode():
        for room in sorted({room for room in rooms if room > 0}, reverse=True):
            for chunk in _chunks([row for row in range(len(prompts)) if rooms[row] == room], batch_size):
                padded, mask = _left_padded([prompt_ids[row] for row in chunk], special.padding, device)
                ends = {"end_id": special.end, "padding_id": special.padding}
                out = model.generate(padded, mask, max_new_tokens=room, **ends)
                for row, text in zip(chunk, tokenizer.decode_batch(out.tolist()), strict=True):
                    texts[row] = text
    return texts


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of logits (n, classes), summed over the targets (n,) that are not `IGNORED`."""
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def cut_rows(num_rows: int, batch_size: int) -> list[np.ndarray]:
    """The row indices of each batch of a split."""
    return [np.arange(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]


def batches(encoded: Encoded, batch_size: int, device: torch.device) -> Iterator[Batch]:
    for rows in cut_rows(len(encoded), batch_size):
        yield encoded.batch(rows).to(device)


def _predict_classes(
    model: nn.Module, spec: ModelSpec, table: pa.Table, encoded: Encoded, asked: Asked, device: torch.device
) -> pa.Table:
    logits = [model(**batch.inputs).double().cpu() for batch in batches(encoded, asked.batch_size, device)]
    probabilities_NK = torch.softmax(torch.cat(logits), dim=-1).numpy()
    columns = {
        "row_id": table["row_id"],
        "target": table["label"] if "label" in table.column_names else pa.nulls(table.num_rows, pa.string()),
        "prediction": [spec.labels[index] for index in probabilities_NK.argmax(axis=1)],
        "probabilities": _lists(probabilities_NK),
    }
    return pa.table(columns, schema=CLASSIFICATION_SCHEMA)


def _lists(values_NK: np.ndarray) -> pa.Array:
    """One list a row; given Python lists instead, pyarrow would import pandas to look at them."""
    offsets = np.arange(len(values_NK) + 1, dtype=np.int32) * values_NK.shape[1]
    return pa.ListArray.from_arrays(offsets, values_NK.reshape(-1))


def _predict_text(
    model: nn.Module, spec: ModelSpec, table: pa.Table, encoded: Encoded, asked: Asked, device: torch.device
) -> pa.Table:
    byte_lengths_V = _token_bytes(spec).to(device)
    unigram_V = model.get_buffer("unigram_log_probs_V")
    sums: dict[str, list[np.ndarray]] = {"loss": [], "unigram_loss": [], "num_tokens": [], "num_bytes": []}
    for rows in cut_rows(len(encoded), asked.batch_size):
        batch = encoded.batch(rows).to(device)
        assert batch.target_rows is not None
        logits = model(**batch.inputs).float()
        per_target = {
            "loss": functional.cross_entropy(logits, batch.targets, reduction="none"),
            "unigram_loss": -unigram_V[batch.targets],
            "num_tokens": torch.ones_like(batch.targets),
            "num_bytes": byte_lengths_V[batch.targets],
        }
        for name, values in per_target.items():
            weights = values.double().cpu().numpy()
            sums[name].append(np.bincount(batch.target_rows, weights=weights, minlength=len(rows)))
    loss, unigram_loss, num_tokens, num_bytes = (np.concatenate(each) for each in sums.values())
    columns = {
        "row_id": table["row_id"],
        "target": table["completion"],
        "prediction": _complete_first(model, spec, table, asked, device),
        "loss": loss,
        "unigram_loss": unigram_loss,
        "num_tokens": num_tokens.astype(np.int64),
        "num_bytes": num_bytes.astype(np.int64),
    }
    return pa.table(columns, schema=LANGUAGE_MODEL_SCHEMA)


def _token_bytes(spec: ModelSpec) -> Tensor:
    """Bytes of text each token stands for: byte-level BPE writes one character a byte; special tokens stand for none."""
    assert spec.tokenizer is not None
    tokenizer = load_tokenizer(spec.tokenizer)
    special = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab()
    lengths = torch.zeros(len(vocabulary), dtype=torch.int64)
    for token, index in vocabulary.items():
        lengths[index] = 0 if index in special else len(token)
    return lengths


def _complete_first(
    model: nn.Module, spec: ModelSpec, table: pa.Table, asked: Asked, device: torch.device
) -> list[str | None]:
    """Completions of the first rows that have a prompt; None for the others."""
    prompts = dict(enumerate(table["prompt"].to_pylist()))
    rows = [row for row, prompt in prompts.items() if prompt][: asked.generate_rows]
    completed = complete(
        model,
        spec,
        [prompts[row] for row in rows],
        max_new_tokens=asked.max_new_tokens,
        batch_size=asked.batch_size,
        device=device,
    )
    texts = dict(zip(rows, completed, strict=True))
    return [texts.get(row) for row in prompts]


def _left_padded(sequences: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest) that all end in the last column, and the mask that is 1 at real tokens."""
    longest = max(len(sequence) for sequence in sequences)
    gaps = [longest - len(sequence) for sequence in sequences]
    ids = [[padding] * gap + sequence for gap, sequence in zip(gaps, sequences, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _check_finite(predictions: pa.Table, spec: ModelSpec) -> None:
    num_bad = int((~np.isfinite(predicted_numbers(predictions, spec))).any(axis=1).sum())
    if num_bad:
        raise DivergedModel(
            f"its predictions are NaN or infinite in {num_bad} of {predictions.num_rows} rows. The model has diverged; "
            "train it again with a lower training.optimizer.lr, or with training.max_gradient_norm."
        )


def _chunks(values: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
