"""From tables of rows to batches of tensors: one encoded form for numbers, one for text, one for prompts and completions.

Targets that are not to be learned are `IGNORED`; a batch's loss is the sum over the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nexa_core.config.model import CausalLmParameters, TextClassifierParameters
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import encode_hashed, hashed_vocabulary, load_tokenizer, special_ids

IGNORED = -100  # what torch's cross_entropy leaves out by default


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    targets: Tensor

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        return Batch({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.targets.to(device))


class Encoded(Protocol):
    """A split, ready to be cut into batches by row index."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What encoding had to leave out, for the log."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Batch: ...


def encode(table: pa.Table, spec: ModelSpec) -> Encoded:
    """The rows of a canonical table as `spec`'s model reads them; without a label or completion, targets are `IGNORED`."""
    if spec.is_language_model:
        return _encode_pairs(table, spec)
    targets_N = _label_indices(table, spec)
    if spec.kind == "features":
        return FeatureRows(_features(table, spec), targets_N)
    return _encode_text(table, spec, targets_N)


@dataclass(frozen=True)
class Ragged:
    """Many token sequences in one flat array; sequence i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> "Ragged":
        lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
        flat = np.concatenate(sequences) if len(sequences) else np.empty(0)
        return cls(flat.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))

    def padded(self, rows: np.ndarray, *, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, longest) int64 with `fill` behind each sequence's end, and the lengths."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        columns = np.arange(max(int(lengths.max(initial=0)), 1))
        real = columns < lengths[:, None]
        out = np.full(real.shape, fill, dtype=np.int64)
        out[real] = self.flat[(starts[:, None] + columns)[real]]
        return out, lengths


@dataclass(frozen=True)
class FeatureRows:
    features: np.ndarray
    targets_N: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: np.ndarray) -> Batch:
        features = torch.from_numpy(self.features[rows])
        return Batch({"features": features}, torch.from_numpy(self.targets_N[rows]))


@dataclass(frozen=True)
class TextRows:
    tokens: Ragged
    targets_N: np.ndarray
    padding_id: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets_N)

    def batch(self, rows: np.ndarray) -> Batch:
        ids, lengths = self.tokens.padded(rows, fill=self.padding_id)
        inputs = {"ids": torch.from_numpy(ids), "lengths": torch.from_numpy(lengths)}
        return Batch(inputs, torch.from_numpy(self.targets_N[rows]))


@dataclass(frozen=True)
class PairRows:
    """Sequences `<|bos|> prompt completion <|eos|>`; the model is asked for the completion and the end only."""

    tokens: Ragged
    prompt_lengths_N: np.ndarray
    """Tokens in front of the first one to be learned, `<|bos|>` among them."""
    padding_id: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompt_lengths_N)

    def batch(self, rows: np.ndarray) -> Batch:
        ids, lengths = self.tokens.padded(rows, fill=self.padding_id)
        positions = np.arange(ids.shape[1])
        learned = (positions >= self.prompt_lengths_N[rows][:, None]) & (positions < lengths[:, None])
        targets = np.where(learned, ids, IGNORED)[:, 1:]
        mask = (positions < lengths[:, None])[:, :-1].astype(np.int64)
        inputs = {"ids": torch.from_numpy(ids[:, :-1].copy()), "attention_mask": torch.from_numpy(mask)}
        return Batch(inputs, torch.from_numpy(targets))


def _features(table: pa.Table, spec: ModelSpec) -> np.ndarray:
    column = table.column("features").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(column), *(spec.feature_shape or ()))


def _label_indices(table: pa.Table, spec: ModelSpec) -> np.ndarray:
    if "label" not in table.column_names:
        return np.full(table.num_rows, IGNORED, dtype=np.int64)
    index = {label: position for position, label in enumerate(spec.labels)}
    return np.array([index[label] for label in table.column("label").to_pylist()], dtype=np.int64)


def _encode_text(table: pa.Table, spec: ModelSpec, targets_N: np.ndarray) -> TextRows:
    texts = table.column("text").to_pylist()
    max_tokens = TextClassifierParameters.model_validate_json(spec.parameters_json).max_tokens
    if spec.tokenizer is None:
        sequences, padding_id = encode_hashed(texts, hashed_vocabulary(spec)), 0
    else:
        tokenizer = load_tokenizer(spec.tokenizer)
        sequences = [np.array(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
        padding_id = special_ids(tokenizer).padding
    num_cut = sum(len(sequence) > max_tokens for sequence in sequences)
    cut = Ragged.of([sequence[:max_tokens] for sequence in sequences])
    return TextRows(cut, targets_N, padding_id, _cut_note(num_cut, len(texts), max_tokens))


def _encode_pairs(table: pa.Table, spec: ModelSpec) -> PairRows:
    assert spec.tokenizer is not None
    tokenizer = load_tokenizer(spec.tokenizer)
    special = special_ids(tokenizer)
    max_tokens = CausalLmParameters.model_validate_json(spec.parameters_json).max_tokens
    prompts = tokenizer.encode_batch_fast([text or "" for text in table.column("prompt").to_pylist()])
    completions = tokenizer.encode_batch_fast([text or "" for text in table.column("completion").to_pylist()])
    whole = [np.array([special.begin, *p.ids, *c.ids, special.end]) for p, c in zip(prompts, completions, strict=True)]
    num_cut = sum(len(sequence) > max_tokens for sequence in whole)
    prompt_lengths_N = np.array([1 + len(prompt.ids) for prompt in prompts], dtype=np.int64)
    notes = list(_cut_note(num_cut, len(whole), max_tokens))
    if num_silent := int((prompt_lengths_N >= max_tokens).sum()):
        notes.append(f"{num_silent} rows teach nothing: their prompt alone fills max_tokens = {max_tokens}")
    cut = Ragged.of([sequence[:max_tokens] for sequence in whole])
    return PairRows(cut, prompt_lengths_N, special.padding, tuple(notes))


def _cut_note(num_cut: int, num_rows: int, max_tokens: int) -> tuple[str, ...]:
    return (f"{num_cut} of {num_rows} rows are longer than max_tokens = {max_tokens} and cut there",) if num_cut else ()
