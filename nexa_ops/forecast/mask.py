"""The first rows that a language model would learn from, with a mark on what is learned."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nexa_data.encoder import load_tokenizer
from nexa_models.encoding import Encoded, PackedRows, Sequences
from nexa_models.spec import ModelSpec
from nexa_models.token_rows import TokenRows
from nexa_train.order import Plan

NUM_SHOWN = 3
MOST_CHARACTERS = 400
"""Of a piece as people see it; the middle of a longer one is left out."""
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True)
class Piece:
    text: str
    """As the tokenizer reads it back, special tokens among it."""
    learned: bool


@dataclass(frozen=True)
class Preview:
    """One sequence."""

    row: int
    """Of the training split, or where that is token sequences, which of them; from 0."""
    num_tokens: int
    num_learned: int
    pieces: tuple[Piece, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self, *, colour: bool) -> str:
        opening, closing = (f"{GREEN}[[", f"]]{PLAIN}") if colour else ("[[", "]]")
        shown = [
            f"{opening}{_visible(piece.text)}{closing}" if piece.learned else _visible(piece.text)
            for piece in self.pieces
        ]
        title = f"row {self.row}: {self.num_tokens} tokens, of which {self.num_learned} in [[ ]] are learned"
        return f"{title}\n    {''.join(shown)}"


def preview(data: Encoded, plan: Plan, spec: ModelSpec) -> tuple[Preview, ...]:
    """The first sequences of the training order; none for models that write no text."""
    if spec.tokenizer is None or not isinstance(data, Sequences | PackedRows | TokenRows):
        return ()
    if isinstance(data, TokenRows):
        order = np.concatenate(plan.microbatches(0))
        return tuple(_show_tokens(data, int(row), load_tokenizer(spec.tokenizer)) for row in order[:NUM_SHOWN])
    sequences = data.sequences if isinstance(data, PackedRows) else data
    order = np.concatenate(plan.microbatches(0))
    if isinstance(data, PackedRows):
        order = np.concatenate([data.packs.flat[slice(*data.packs.offsets[pack : pack + 2])] for pack in order])
    tokenizer = load_tokenizer(spec.tokenizer)
    return tuple(_show_sequence(sequences, int(index), tokenizer) for index in order[:NUM_SHOWN])


def _show_tokens(data: TokenRows, row: int, tokenizer: Tokenizer) -> Preview:
    ids = data.sequences.read(row, following=True)
    return _show(row, ids.tolist(), np.concatenate([[False], ids[:-1] != data.end_id]), tokenizer)


def _show_sequence(sequences: Sequences, index: int, tokenizer: Tokenizer) -> Preview:
    span = slice(*sequences.tokens.offsets[index : index + 2])
    ids, learned = sequences.tokens.flat[span].tolist(), sequences.learned[span].copy()
    learned[:1] = False  # nothing stands before it that it could be predicted from
    return _show(int(sequences.rows_N[index]), ids, learned, tokenizer)


def _show(row: int, ids: list[int], learned: np.ndarray, tokenizer: Tokenizer) -> Preview:
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    # Read back from the beginning each time: what a token is written as may depend on those before it.
    upto = [tokenizer.decode(ids[:edge], skip_special_tokens=False) for edge in edges]
    pieces = tuple(
        Piece(upto[place + 1][len(upto[place]) :], bool(learned[edges[place]])) for place in range(len(edges) - 1)
    )
    return Preview(row, len(ids), int(learned.sum()), pieces)


def _visible(text: str) -> str:
    """On one line for each of its own, the ends of which are shown."""
    half = MOST_CHARACTERS // 2
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:half]} ... {len(text) - 2 * half:,} characters ... {text[-half:]}"
    return text.replace("\n", "\u23ce\n    ")
