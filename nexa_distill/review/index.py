"""What is known of every pair, in a few bytes each: whose sample it is, what the filter and what a person made of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow
import xxhash

from nexa_core.errors import UserError
from nexa_distill.review.pairs import PairFile

KEY_COLUMNS = ("row_id", "sample_index", "request_sha256")
UNKNOWN, KEPT = 0, 1
MAX_REASONS = 200
"""Of these there are few, unless a reason holds a value of its row; the others count as the step's."""


def key_of(row_id: str, sample_index: int, request_sha256: str) -> int:
    """The number that an answer goes by."""
    return xxhash.xxh3_64_intdigest(f"{row_id}\0{sample_index}\0{request_sha256}".encode(errors="surrogatepass"))


@dataclass
class Index:
    """An entry for each row of the outputs, in their order."""

    keys: np.ndarray
    prompts: np.ndarray
    """The number of the row's prompt: rows of one prompt follow each other."""
    statuses: np.ndarray
    status_names: list[str]
    decisions: np.ndarray
    """Positions in `reviews.DECISIONS`."""
    versions: np.ndarray
    """The line of the decision in the journal, counted from 1; 0 where there is none."""
    reasons: np.ndarray
    """UNKNOWN, KEPT, or the position of what the filter rejected it for in `reason_names`."""
    rejected_rows: np.ndarray
    """The row among the rejected ones; -1 where it is not among them."""
    reason_names: list[tuple[str, str]] = field(default_factory=lambda: [("", ""), ("", "")])
    """(step, reason)."""

    def __post_init__(self) -> None:
        self._order = np.argsort(self.keys)
        self._sorted = self.keys[self._order]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key; -1 where there is none."""
        if not len(self):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], -1)

    def samples(self, row: int) -> tuple[int, int]:
        """The rows, from and to, of the same prompt as `row`."""
        prompt = self.prompts[row]
        return (
            int(np.searchsorted(self.prompts, prompt, side="left")),
            int(np.searchsorted(self.prompts, prompt, side="right")),
        )


def make_index(outputs: PairFile) -> Index:
    """The index of a file of outputs, before anything is known of filters and decisions.

    Raises:
        UserError: two rows are the same answer.
    """
    keys = np.zeros(outputs.num_rows, dtype=np.uint64)
    statuses = np.zeros(outputs.num_rows, dtype=np.uint8)
    prompts = np.zeros(outputs.num_rows, dtype=np.int32)
    names: dict[str, int] = {}
    prompt, last_id, row = -1, None, 0
    for batch in outputs.batches(*KEY_COLUMNS, "status"):
        for row_id, sample_index, request, status in zip(*_columns(batch, "status"), strict=True):
            keys[row] = key_of(row_id, sample_index, request)
            prompt += row_id != last_id
            prompts[row], statuses[row], last_id = prompt, names.setdefault(status or "", len(names)), row_id
            row += 1
    index = Index(
        keys=keys,
        prompts=prompts,
        statuses=statuses,
        status_names=list(names),
        decisions=np.zeros(len(keys), dtype=np.uint8),
        versions=np.zeros(len(keys), dtype=np.int32),
        reasons=np.zeros(len(keys), dtype=np.int16),
        rejected_rows=np.full(len(keys), -1, dtype=np.int32),
    )
    if len(same := np.flatnonzero(index._sorted[1:] == index._sorted[:-1])):
        first, second = sorted(int(index._order[place]) for place in (same[0], same[0] + 1))
        raise UserError(
            f"{outputs.path}: rows {first} and {second} have the same row_id, sample_index and request_sha256; "
            "a decision on one could not be told from one on the other."
        )
    return index


def add_verdicts(index: Index, kept: PairFile | None, rejected: PairFile | None) -> int:
    """Note what the filter made of each row; the number of those that it has looked at."""
    num_found = 0
    if kept is not None:
        for keys, _ in _keys(kept):
            rows = index.find(keys)
            num_found += int((rows >= 0).sum())
            index.reasons[rows[rows >= 0]] = KEPT
    if rejected is not None:
        known: dict[tuple[str, str], int] = {}
        begin = 0
        for keys, (steps, why) in _keys(rejected, "step", "reason"):
            rows = index.find(keys)
            num_found += int((rows >= 0).sum())
            numbers = np.array([_number(index, known, *each) for each in zip(steps, why, strict=True)], dtype=np.int16)
            index.reasons[rows[rows >= 0]] = numbers[rows >= 0]
            index.rejected_rows[rows[rows >= 0]] = begin + np.flatnonzero(rows >= 0)
            begin += len(keys)
    return num_found


def _number(index: Index, known: dict[tuple[str, str], int], step: str | None, reason: str | None) -> int:
    name = (step or "", reason or "")
    if name not in known and len(known) >= MAX_REASONS:
        name = (name[0], "")
    if name not in known:
        known[name] = len(index.reason_names)
        index.reason_names.append(name)
    return known[name]


def _keys(file: PairFile, *others: str) -> Iterator[tuple[np.ndarray, list[list[str]]]]:
    for batch in file.batches(*KEY_COLUMNS, *others):
        row_ids, samples, requests, *rest = _columns(batch, *others)
        yield np.fromiter(map(key_of, row_ids, samples, requests), dtype=np.uint64, count=len(batch)), list(rest)


def _columns(batch: pyarrow.RecordBatch, *others: str) -> Iterator[list[Any]]:
    for name in (*KEY_COLUMNS, *others):
        yield batch.column(name).to_pylist() if name in batch.schema.names else [None] * len(batch)
