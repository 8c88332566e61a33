"""From tables of rows to batches of tensors: one encoded form for numbers, one for text, one for what is generated.

Targets that are not to be learned are `IGNORED`; a batch's loss is the sum over the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nexa_core.errors import UserError
from nexa_data.rows import plain_messages
from nexa_models.chat import encode_conversations
from nexa_models.packing import pack
from nexa_models.spec import ModelSpec
from nexa_models.stored import StoredTop
from nexa_models.vocabulary import encode_plain, encode_texts, special_ids_of

IGNORED = -100  # what torch's cross_entropy leaves out by default
WIDTH_MULTIPLE = 64
MOST_WIDTHS = 6


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    """What the model's forward takes."""
    targets: Tensor
    """(rows,) classes, or (n,) the next token at each place that is learned."""
    target_rows: np.ndarray | None = None
    """(n,) which of the batch's rows each learned token belongs to; None where each row has one target."""
    num_tokens: int = 0
    """Tokens in it that are no padding."""
    num_slots: int = 0
    """Tokens that the model computes, padding among them."""
    beside: dict[str, Tensor] = field(default_factory=dict)
    """What a teacher thinks of each target, where that is stored: see `nexa_models.stored`."""

    def to(self, device: torch.device) -> "Batch":
        """On the device; copies from pinned memory do not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In memory that a GPU reads from directly."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        inputs, beside = (
            {name: change(tensor) for name, tensor in each.items()} for each in (self.inputs, self.beside)
        )
        return replace(self, inputs=inputs, targets=change(self.targets), beside=beside)


class Encoded(Protocol):
    """A split, ready to be cut into batches by row index."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What encoding had to leave out, for the log."""

    @property
    def token_counts_N(self) -> np.ndarray:
        """Tokens of each row that the model reads; 0 where rows have none."""

    @property
    def target_counts_N(self) -> np.ndarray:
        """Targets of each row that are learned."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Batch: ...


def encode(table: pa.Table, spec: ModelSpec) -> Encoded:
    """The rows of a canonical table as `spec`'s model reads them; without a label or completion, targets are `IGNORED`."""
    if spec.is_language_model:
        return _encode_chats(table, spec) if spec.kind == "chat" else _encode_pairs(table, spec)
    targets_N = _label_indices(table, spec)
    if spec.kind == "features":
        return FeatureRows(_features(table, spec), targets_N)
    return _encode_text(table, spec, targets_N)


@dataclass(frozen=True)
class Ragged:
    """Many sequences in one flat array; sequence i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], dtype: type = np.int32) -> "Ragged":
        flat = np.concatenate(sequences) if len(sequences) else np.empty(0)
        return cls(flat.astype(dtype), _offsets([len(sequence) for sequence in sequences]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every element of these sequences, one after the other: its place in `flat`, its sequence (index into
        `rows`), and its position in it."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        owners = np.repeat(np.arange(len(rows)), lengths)
        positions = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.offsets[rows][owners] + positions, owners, positions


@dataclass(frozen=True)
class Shapes:
    """Which shapes padded batches may have: any, or few, so that a compiled model is compiled a few times only."""

    widths: tuple[int, ...] = ()
    """A batch is as wide as the first of them that is wide enough; without them, as its longest row."""
    num_rows: int | None = None
    """Batches are filled up with empty rows to so many."""

    @classmethod
    def few(cls, *, longest: int, most: int, num_rows: int) -> "Shapes":
        """At most `MOST_WIDTHS` widths up to that of the longest row, none above `most`."""
        step = WIDTH_MULTIPLE * -(-longest // (MOST_WIDTHS * WIDTH_MULTIPLE))
        return cls(tuple(min(width, most) for width in range(step, longest + step, step)), num_rows)

    def of(self, num_rows: int, longest: int) -> tuple[int, int]:
        width = next((width for width in self.widths if width >= longest), longest)
        return self.num_rows or num_rows, max(width, 1)


@dataclass(frozen=True)
class FeatureRows:
    features: np.ndarray
    targets_N: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def token_counts_N(self) -> np.ndarray:
        return np.zeros(len(self), dtype=np.int64)

    @cached_property
    def target_counts_N(self) -> np.ndarray:
        return (self.targets_N != IGNORED).astype(np.int64)

    def batch(self, rows: np.ndarray) -> Batch:
        features = torch.from_numpy(self.features[rows])
        return Batch({"features": features}, torch.from_numpy(self.targets_N[rows]))


@dataclass(frozen=True)
class TextRows:
    tokens: Ragged
    targets_N: np.ndarray
    padding_id: int
    notes: tuple[str, ...]
    shapes: Shapes = Shapes()

    def __len__(self) -> int:
        return len(self.targets_N)

    @property
    def token_counts_N(self) -> np.ndarray:
        return self.tokens.lengths

    @cached_property
    def target_counts_N(self) -> np.ndarray:
        return (self.targets_N != IGNORED).astype(np.int64)

    def batch(self, rows: np.ndarray) -> Batch:
        places, owners, positions = self.tokens.places(rows)
        lengths = self.tokens.lengths[rows]
        shape = self.shapes.of(len(rows), int(lengths.max(initial=0)))
        ids = np.full(shape, self.padding_id, dtype=np.int64)
        ids[owners, positions] = self.tokens.flat[places]
        num_empty = shape[0] - len(rows)  # of one padding token, and nothing to learn
        lengths = np.concatenate([lengths, np.ones(num_empty, dtype=lengths.dtype)])
        targets = np.concatenate([self.targets_N[rows], np.full(num_empty, IGNORED)])
        inputs = {"ids": torch.from_numpy(ids), "lengths": torch.from_numpy(lengths)}
        return Batch(inputs, torch.from_numpy(targets), num_tokens=len(places), num_slots=ids.size)


@dataclass(frozen=True)
class Sequences:
    """What a language model learns from, a sequence a row; each token but the first may be a target."""

    tokens: Ragged
    learned: np.ndarray
    """Whether each token of `tokens.flat` is to be predicted."""
    padding_id: int
    notes: tuple[str, ...] = ()
    rows_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The table's row that each sequence is of; a long document has several."""
    shapes: Shapes = Shapes()
    stored: StoredTop | None = None
    """What a teacher thinks of the targets."""

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def token_counts_N(self) -> np.ndarray:
        """All but the last of each sequence, which is only predicted."""
        return np.maximum(self.tokens.lengths - 1, 0)

    @cached_property
    def target_counts_N(self) -> np.ndarray:
        summed = np.concatenate([[0], np.cumsum(self._is_target)])
        return np.diff(summed[self.tokens.offsets])

    @property
    def targets(self) -> np.ndarray:
        """Every token that is to be predicted."""
        return self.tokens.flat[self._is_target]

    def batch(self, rows: np.ndarray) -> Batch:
        """One sequence a row, padded on the right."""
        shape = self.shapes.of(len(rows), int(self.token_counts_N[rows].max(initial=0)))
        return self.lay_out(rows, np.arange(len(rows)) * shape[1], shape=shape, owners=np.arange(len(rows)))

    def lay_out(
        self, rows: np.ndarray, starts: np.ndarray, *, shape: tuple[int, int], owners: np.ndarray, packed: bool = False
    ) -> Batch:
        """The batch in which sequence `rows[i]` begins at the flat place `starts[i]` and belongs to row `owners[i]`."""
        lengths = self.token_counts_N[rows]
        which = np.repeat(np.arange(len(rows)), lengths)
        positions = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        sources, places = self.tokens.offsets[rows][which] + positions, starts[which] + positions
        ids = np.full(shape[0] * shape[1], self.padding_id, dtype=np.int64)
        ids[places] = self.tokens.flat[sources]
        is_target = self.learned[sources + 1]
        inputs = {"ids": torch.from_numpy(ids.reshape(shape)), "at": torch.from_numpy(places[is_target])}
        if packed:
            position_ids, documents = np.zeros_like(ids), np.zeros_like(ids)
            position_ids[places], documents[places] = positions, which + 1  # 0 is the padding's
            inputs["positions"] = torch.from_numpy(position_ids.reshape(shape))
            inputs["documents"] = torch.from_numpy(documents.reshape(shape))
        return Batch(
            inputs,
            torch.from_numpy(self.tokens.flat[sources[is_target] + 1].astype(np.int64)),
            target_rows=owners[which[is_target]],
            num_tokens=len(which),
            num_slots=ids.size,
            beside={} if self.stored is None else self.stored.of(sources[is_target] + 1),
        )

    @property
    def _is_target(self) -> np.ndarray:
        """`learned`, but for the first token of each sequence, which nothing stands in front of."""
        is_first = np.zeros(len(self.learned), dtype=bool)
        is_first[self.tokens.offsets[:-1][self.tokens.lengths > 0]] = True
        return self.learned & ~is_first


@dataclass(frozen=True)
class PackedRows:
    """Sequences packed into rows of equal width, each attending to itself only; a row is a pack."""

    sequences: Sequences
    packs: Ragged
    """The sequences of each pack."""
    starts: np.ndarray
    """For each entry of `packs.flat`, the place in its pack where it begins."""
    width: int

    @classmethod
    def of(cls, sequences: Sequences, width: int) -> "PackedRows":
        """Packs of `width` tokens, chosen by length alone (best fit decreasing), so that they are always the same."""
        packs = Ragged.of(pack(sequences.token_counts_N, width), dtype=np.int64)
        lengths = sequences.token_counts_N[packs.flat]
        before = np.cumsum(lengths) - lengths
        first = np.repeat(packs.offsets[:-1], packs.lengths)
        return cls(sequences, packs, before - before[first] if len(before) else before, width)

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.sequences.notes

    @property
    def note(self) -> str:
        """How well the packs are filled."""
        filled = self.sequences.token_counts_N.sum() / max(len(self) * self.width, 1)
        return f"{len(self.sequences)} rows in {len(self)} packs of {self.width} tokens, {1 - filled:.1%} padding"

    @cached_property
    def token_counts_N(self) -> np.ndarray:
        return self._sums(self.sequences.token_counts_N)

    @cached_property
    def target_counts_N(self) -> np.ndarray:
        return self._sums(self.sequences.target_counts_N)

    def batch(self, rows: np.ndarray) -> Batch:
        places, owners, _ = self.packs.places(rows)
        shape = (self.sequences.shapes.of(len(rows), 0)[0], self.width)
        starts = owners * self.width + self.starts[places]
        return self.sequences.lay_out(self.packs.flat[places], starts, shape=shape, owners=owners, packed=True)

    @property
    def targets(self) -> np.ndarray:
        return self.sequences.targets

    def _sums(self, counts_N: np.ndarray) -> np.ndarray:
        """For each pack the sum over its sequences."""
        summed = np.concatenate([[0], np.cumsum(counts_N[self.packs.flat])])
        return np.diff(summed[self.packs.offsets])


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
    sequences, num_cut = encode_texts(table.column("text").to_pylist(), spec)
    padding_id = 0 if spec.tokenizer is None else special_ids_of(spec).padding
    notes = _cut_note(num_cut, len(sequences), spec.max_tokens)
    return TextRows(Ragged.of(sequences), targets_N, padding_id, notes)


def _encode_pairs(table: pa.Table, spec: ModelSpec) -> Sequences:
    """Each pair as beginning, prompt, completion, end, of which the last two are learned.

    A document, which has no prompt, is learned whole: where it is longer than `max_tokens` it goes on in further
    sequences, each beginning with the last token of the one before.
    """
    special = special_ids_of(spec)
    begin = [] if special.begin is None else [special.begin]
    prompts, completions = table.column("prompt").to_pylist(), table.column("completion").to_pylist()
    encoded = zip(
        encode_plain([text or "" for text in prompts], spec),
        encode_plain([text or "" for text in completions], spec),
        strict=True,
    )
    whole, masks, is_document = [], [], [not prompt for prompt in prompts]
    for prompt, completion in encoded:
        whole.append(np.array([*begin, *prompt, *completion, special.end], dtype=np.int32))
        masks.append(np.arange(len(whole[-1])) >= len(begin) + len(prompt))
    return _cut_sequences(whole, masks, spec, go_on=is_document)


def _encode_chats(table: pa.Table, spec: ModelSpec) -> Sequences:
    """Each conversation as the chat template writes it; what the assistant says is learned."""
    conversations = [plain_messages(messages) for messages in table.column("messages").to_pylist()]
    for number, conversation in enumerate(conversations, 1):
        if weighted := sorted({key for message in conversation for key in ("train", "weight") if key in message}):
            raise UserError(
                f"Conversation {number} has messages with '{weighted[0]}', which nothing here reads; all turns of the "
                "assistant are learned alike. Leave the key out, or the turns that are not to be learned."
            )
    encoded = encode_conversations(conversations, spec)
    return _cut_sequences([ids for ids, _ in encoded], [learned for _, learned in encoded], spec)


def _cut_sequences(
    sequences: list[np.ndarray], learned: list[np.ndarray], spec: ModelSpec, go_on: Sequence[bool] | None = None
) -> Sequences:
    """Sequences of at most `max_tokens`: longer ones are cut there, or `go_on` in further ones."""
    parts: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    rows: list[int] = []
    most = spec.max_tokens
    num_cut, stride = 0, most - 1  # a sequence's last token is the next one's first
    for row, (tokens, mask) in enumerate(zip(sequences, learned, strict=True)):
        goes_on = go_on is not None and go_on[row]
        num_cut += len(tokens) > most and not goes_on
        for start in range(0, max(len(tokens) - 1, 1), stride) if goes_on else (0,):
            parts.append(tokens[start : start + most])
            masks.append(mask[start : start + most])
            rows.append(row)
    notes = list(_cut_note(num_cut, len(sequences), most))
    encoded = Sequences(
        Ragged.of(parts), Ragged.of(masks, dtype=np.bool_).flat, special_ids_of(spec).padding, rows_N=np.array(rows)
    )
    taught = np.bincount(encoded.rows_N, weights=encoded.target_counts_N, minlength=len(sequences))
    if num_silent := int((taught == 0).sum()):
        notes.append(f"{num_silent} rows teach nothing: what is to be learned lies beyond max_tokens = {most}")
    return replace(encoded, notes=tuple(notes))


def _cut_note(num_cut: int, num_rows: int, max_tokens: int) -> tuple[str, ...]:
    return (f"{num_cut} of {num_rows} rows are longer than max_tokens = {max_tokens} and cut there",) if num_cut else ()


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
