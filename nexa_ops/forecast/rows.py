"""What a model would read of a split's rows, and what it would not."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from nexa_models.encoding import Encoded, PackedRows, Sequences, TextRows, encode
from nexa_models.spec import ModelSpec
from nexa_models.token_rows import TokenRows

UNCUT = 2**30
"""More tokens than any row has."""


@dataclass(frozen=True)
class RowCounts:
    split: str
    num_rows: int
    num_tokens: int
    """That the model reads; 0, and so are the next four, where rows have none."""
    longest_row: int
    """In tokens, as they are read."""
    num_cut: int
    """Rows that are longer than `max_tokens`; a document that goes on in further sequences is not."""
    num_tokens_lost: int
    """In what was cut off."""
    num_targets: int
    """Tokens or labels that are learned."""
    num_silent: int
    """Rows of which nothing is learned."""

    def as_json(self) -> dict[str, Any]:
        lost = self.num_tokens + self.num_tokens_lost
        shares = {
            "cut_share": self.num_cut / self.num_rows if self.num_rows else 0.0,
            "tokens_lost_share": self.num_tokens_lost / lost if lost else 0.0,
        }
        return {**asdict(self), **shares}

    def as_text(self) -> str:
        if not self.num_tokens:
            return f"{self.split:<5} {self.num_rows:,} rows"
        shares = self.as_json()
        parts = [f"{self.split:<5} {self.num_rows:,} rows, {self.num_tokens:,} tokens, {self.num_targets:,} learned"]
        parts.append(f"longest {self.longest_row:,}")
        if self.num_cut:
            parts.append(f"{self.num_cut:,} cut ({shares['cut_share']:.1%})")
            parts.append(f"{self.num_tokens_lost:,} tokens lost ({shares['tokens_lost_share']:.1%})")
        if self.num_silent:
            parts.append(f"{self.num_silent:,} teach nothing")
        return ", ".join(parts)


def count_rows(split: str, read: Callable[[], pa.Table], encoded: Encoded, spec: ModelSpec) -> RowCounts:
    """The counts of a split that was encoded, packed or not; rows that may have been cut are encoded once more, uncut.

    Args:
        read: gives the rows; is not asked where sequences were made when the dataset was prepared.
    """
    if isinstance(encoded, TokenRows):
        return _count_sequences(split, encoded)
    table = read()
    whole = encoded.sequences if isinstance(encoded, PackedRows) else encoded
    tokens_N = _by_row(whole, whole.token_counts_N, table.num_rows)
    targets_N = _by_row(whole, whole.target_counts_N, table.num_rows)
    cut, num_lost = _find_cut(table, whole, tokens_N, spec)
    return RowCounts(
        split=split,
        num_rows=table.num_rows,
        num_tokens=int(tokens_N.sum()),
        longest_row=int(tokens_N.max(initial=0)),
        num_cut=cut,
        num_tokens_lost=num_lost,
        num_targets=int(targets_N.sum()),
        num_silent=int((targets_N == 0).sum()),
    )


def _count_sequences(split: str, encoded: TokenRows) -> RowCounts:
    """Documents that were cut into sequences; nothing of them is lost."""
    return RowCounts(
        split=split,
        num_rows=int(encoded.begun_N.sum()),
        num_tokens=int(encoded.token_counts_N.sum()),
        longest_row=int(encoded.token_counts_N.max(initial=0)),
        num_cut=0,
        num_tokens_lost=0,
        num_targets=int(encoded.target_counts_N.sum()),
        num_silent=0,
    )


def _find_cut(table: pa.Table, encoded: Encoded, tokens_N: np.ndarray, spec: ModelSpec) -> tuple[int, int]:
    """How many rows were cut, and how many tokens that took: only rows of full length can have been."""
    if not isinstance(encoded, Sequences | TextRows):
        return 0, 0
    owners = encoded.rows_N if isinstance(encoded, Sequences) else np.arange(table.num_rows)
    full = np.unique(owners[encoded.tokens.lengths >= spec.max_tokens])
    if not len(full):
        return 0, 0
    parameters = {**spec.model["parameters"], "max_tokens": UNCUT}
    uncut = encode(table.take(full), replace(spec, model={**spec.model, "parameters": parameters}))
    lost_N = _by_row(uncut, uncut.token_counts_N, len(full)) - tokens_N[full]
    return int((lost_N > 0).sum()), int(lost_N.sum())


def _by_row(encoded: Encoded, counts: np.ndarray, num_rows: int) -> np.ndarray:
    """Counts of sequences added up for each row of the table."""
    if not isinstance(encoded, Sequences):
        return counts
    return np.bincount(encoded.rows_N, weights=counts, minlength=num_rows).astype(np.int64)
