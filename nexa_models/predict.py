"""From a model and rows to a table of predictions, and from predictions to scores."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from nexa_core.errors import GateError
from nexa_core.metrics import Scores, classification_scores, language_model_scores
from nexa_data.encoder import load_tokenizer
from nexa_data.rows import plain_messages
from nexa_models.causal_lm import CausalLm
from nexa_models.chat import prompt_ids, stop_ids
from nexa_models.encoding import Batch, Encoded, Sequences, encode
from nexa_models.generation import left_padded
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import special_ids_of, token_bytes

MOST_SLOTS, MOST_TARGETS = 2**16, 2**14
"""Tokens, padding among them, and learned ones that are looked at together: of 32,000 logits each the latter take 2 GiB."""

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
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    batch_size: int,
    device: torch.device,
) -> list[str | None]:
    """A language model's greedy completions of texts, or of conversations that an assistant is to go on with; None for one
    that leaves no room in the model's `max_tokens`.

    A completion ends after `max_new_tokens`, or earlier where the model's `max_tokens` are full.
    """
    assert spec.tokenizer is not None
    assert isinstance(model, CausalLm)
    tokenizer, padding_id = load_tokenizer(spec.tokenizer), special_ids_of(spec).padding
    ids_of_prompts = prompt_ids(prompts, spec)
    rooms = [min(max_new_tokens, spec.max_tokens - len(ids)) for ids in ids_of_prompts]
    texts: list[str | None] = [None] * len(prompts)
    with torch.inference_mode():
        for room in sorted({room for room in rooms if room > 0}, reverse=True):
            for chunk in _chunks([row for row in range(len(prompts)) if rooms[row] == room], batch_size):
                padded, mask = left_padded([ids_of_prompts[row] for row in chunk], padding_id, device)
                out = model.generate(padded, mask, max_new_tokens=room, end_id=stop_ids(spec), padding_id=padding_id)
                for row, text in zip(chunk, tokenizer.decode_batch(out.tolist()), strict=True):
                    texts[row] = text
    return texts


def cut_rows(encoded: Encoded, batch_size: int) -> list[np.ndarray]:
    """The row indices of each batch of a split: `batch_size` of them, or fewer where they are long."""
    tokens, targets = encoded.token_counts_N.tolist(), encoded.target_counts_N.tolist()
    starts, longest, num_targets = [0], 0, 0
    for row in range(len(encoded)):
        longest, num_targets = max(longest, tokens[row]), num_targets + targets[row]
        num_rows = row + 1 - starts[-1]
        is_full = num_rows > batch_size or num_rows * longest > MOST_SLOTS or num_targets > MOST_TARGETS
        if is_full and num_rows > 1:
            starts.append(row)
            longest, num_targets = tokens[row], targets[row]
    return [np.arange(start, end) for start, end in pairwise([*starts, len(encoded)]) if end > start]


def batches(encoded: Encoded, batch_size: int, device: torch.device) -> Iterator[Batch]:
    for rows in cut_rows(encoded, batch_size):
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
    assert isinstance(encoded, Sequences)
    byte_lengths_V = torch.from_numpy(token_bytes(spec)).to(device)
    unigram_V = model.get_buffer("unigram_log_probs_V")
    sums = np.zeros((4, table.num_rows))  # of each row: loss, unigram loss, tokens, bytes
    for sequences in cut_rows(encoded, asked.batch_size):
        batch = encoded.batch(sequences).to(device)
        assert batch.target_rows is not None
        rows = encoded.rows_N[sequences][batch.target_rows]
        per_target = (
            functional.cross_entropy(model(**batch.inputs).float(), batch.targets, reduction="none"),
            -unigram_V[batch.targets],
            torch.ones_like(batch.targets),
            byte_lengths_V[batch.targets],
        )
        first = rows.min(initial=table.num_rows)  # a batch's rows lie side by side
        for total, values in zip(sums, per_target, strict=True):
            summed = np.bincount(rows - first, weights=values.double().cpu().numpy())
            total[first : first + len(summed)] += summed
    prompts, targets = _asked_and_wanted(table)
    columns = {
        "row_id": table["row_id"],
        "target": targets,
        "prediction": _complete_first(model, spec, prompts, asked, device),
        "loss": sums[0],
        "unigram_loss": sums[1],
        "num_tokens": sums[2].astype(np.int64),
        "num_bytes": sums[3].astype(np.int64),
    }
    return pa.table(columns, schema=LANGUAGE_MODEL_SCHEMA)


def _asked_and_wanted(table: pa.Table) -> tuple[list[Any], list[str]]:
    """Of each row what a model is asked and what it should answer; of a conversation, the assistant's last turn."""
    if "messages" not in table.column_names:
        return table["prompt"].to_pylist(), table["completion"].to_pylist()
    prompts, targets = [], []
    for messages in table["messages"].to_pylist():
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        prompts.append(plain_messages(messages[:last]))
        targets.append(messages[last]["content"])
    return prompts, targets


def _complete_first(
    model: nn.Module, spec: ModelSpec, prompts: Sequence[Any], asked: Asked, device: torch.device
) -> list[str | None]:
    """Completions of the first rows that have a prompt; None for the others."""
    rows = [row for row, prompt in enumerate(prompts) if prompt][: asked.generate_rows]
    completed = complete(
        model,
        spec,
        [prompts[row] for row in rows],
        max_new_tokens=asked.max_new_tokens,
        batch_size=asked.batch_size,
        device=device,
    )
    texts = dict(zip(rows, completed, strict=True))
    return [texts.get(row) for row in range(len(prompts))]


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
