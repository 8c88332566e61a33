"""Training sequences that were encoded when the dataset was prepared, as a language model reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow
import torch

from nexa_core.errors import UserError
from nexa_data.datasets import Dataset
from nexa_data.encoder import encoding_digest
from nexa_data.sequences import TokenSequences, added, read_target_counts
from nexa_models.encoding import Batch
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import special_ids_of

NUM_LOOKED_AT = 1024
"""Sequences, evenly spread, that say how long documents are in them."""


@dataclass(frozen=True)
class TokenRows:
    """A row is a sequence of whole documents and parts of some, each of which attends to itself only.

    A token is learned where one of its own document stands in front of it, in the same sequence or as the last of the one
    before: every token of a document but its first, once. Ids come out of mapped files; only counts are held.
    """

    sequences: TokenSequences
    target_counts_N: np.ndarray
    begun_N: np.ndarray
    """Documents that begin in each sequence."""
    end_id: int
    padding_id: int
    notes: tuple[str, ...] = ()
    counts_path: Path | None = None
    """How often each token is to be predicted, where that was counted when the dataset was prepared."""
    num_rows: int | None = None
    """Batches are filled up with empty rows to so many, so that a compiled model sees one shape."""

    @classmethod
    def of(cls, dataset: Dataset, spec: ModelSpec, *, share: int = 0, num_shares: int = 1) -> "TokenRows":
        """The training sequences of a dataset, whose digests processes of one machine may hold together, each its share.

        Raises:
            UserError: they are not what the spec's model reads, or a file of them is missing or changed.
        """
        width = dataset.sequence_tokens
        assert width is not None
        _check(dataset, spec, width)
        counts_path = dataset.target_counts()
        if counts_path is None:  # each process is going to read all of it
            share, num_shares = 0, 1
        sequences = TokenSequences(dataset.sequence_shards(share=share, num_shares=num_shares), width=width)
        try:
            targets_N, begun_N = sequences.read_counts()
        except (pyarrow.ArrowException, OSError):
            dataset.sequence_shards()  # which says what is wrong, also where the digest was another process's to hold
            raise
        special = special_ids_of(spec)
        return cls(sequences, targets_N, begun_N, special.end, special.padding, counts_path=counts_path)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def note(self) -> str:
        """How much there is."""
        return f"{int(self.begun_N.sum()):,} documents in {len(self):,} sequences of {self.sequences.width:,} tokens"

    @property
    def token_counts_N(self) -> np.ndarray:
        return self.sequences.token_counts_N

    def batch(self, rows: np.ndarray) -> Batch:
        shape = (self.num_rows or len(rows), self.sequences.width)
        # One place more than the model reads: the token after a sequence is its last target.
        ids = np.full((shape[0], shape[1] + 1), self.padding_id, dtype=np.int64)
        lengths = self.token_counts_N[rows]
        has_next = np.zeros((shape[0], shape[1]), dtype=bool)
        for place, row in enumerate(rows.tolist()):
            found = self.sequences.read(row, following=True)
            ids[place, : len(found)] = found
            has_next[place, : len(found) - 1] = True
        is_token = np.zeros((shape[0], shape[1]), dtype=bool)
        is_token[: len(rows)] = np.arange(shape[1]) < lengths[:, None]
        positions, documents = _documents(ids[:, :-1], is_token, self.end_id)
        is_source = has_next & (ids[:, :-1] != self.end_id)
        owners, _ = np.nonzero(is_source)
        inputs = {
            "ids": torch.from_numpy(np.ascontiguousarray(ids[:, :-1])),
            "at": torch.from_numpy(np.flatnonzero(is_source)),
            "positions": torch.from_numpy(positions),
            "documents": torch.from_numpy(documents),
        }
        targets = torch.from_numpy(ids[:, 1:][is_source])
        return Batch(inputs, targets, target_rows=owners, num_tokens=int(lengths.sum()), num_slots=shape[0] * shape[1])

    def count_targets(self, num_tokens: int) -> np.ndarray:
        """How often each of `num_tokens` ids is to be predicted; goes through all files where that was not counted before."""
        if self.counts_path is not None:
            return added(read_target_counts(self.counts_path), np.zeros(num_tokens, dtype=np.int64))
        counts = np.zeros(num_tokens, dtype=np.int64)
        goes_on = False
        for ids in self.sequences.blocks():
            is_target = np.concatenate([[goes_on], ids[:-1] != self.end_id])
            counts += np.bincount(ids[is_target], minlength=num_tokens)
            goes_on = bool(ids[-1] != self.end_id)
        return counts

    @cached_property
    def piece_lengths(self) -> np.ndarray:
        """Tokens of each document, or part of one, in sequences spread evenly over all."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), NUM_LOOKED_AT)).astype(np.int64))
        return np.concatenate([np.diff(np.array([0, *self._ends(row)])) for row in rows.tolist()])

    def _ends(self, row: int) -> Iterator[int]:
        """Where the documents of a sequence end in it; the last where it ends itself."""
        ids = self.sequences.read(row)
        yield from (np.flatnonzero(ids[:-1] == self.end_id) + 1).tolist()
        yield len(ids)


def _check(dataset: Dataset, spec: ModelSpec, width: int) -> None:
    tokenizer, special = dataset.tokenizer_json(), special_ids_of(spec)
    assert spec.tokenizer is not None
    assert tokenizer is not None
    if encoding_digest(spec.tokenizer) != encoding_digest(tokenizer):
        raise UserError(
            f"The sequences of {dataset.key} were made with another tokenizer than the model's. Prepare them with "
            "`tokenizer: {path: <the model's tokenizer.json>}`, or without output.sequence_tokens."
        )
    if dataset.sequence_marks != (special.begin, special.end):
        begin, end = dataset.sequence_marks
        raise UserError(
            f"The documents of {dataset.key} stand between the ids {begin} and {end}, and the model's between "
            f"{special.begin} and {special.end}. Set tokenizer.begin and tokenizer.end of the dataset to the model's."
        )
    if width > spec.max_tokens:
        raise UserError(
            f"{dataset.key} holds sequences of {width} tokens (output.sequence_tokens) and the model reads "
            f"{spec.max_tokens}; set model.parameters.max_tokens to {width} or more."
        )


def _documents(ids: np.ndarray, is_token: np.ndarray, end_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each place its position in its document, and the number of the document, from 1; padding has 0 for both."""
    is_first = np.zeros_like(is_token)
    is_first[:, 1:] = ids[:, :-1] == end_id
    is_first[:, 0] = True
    is_first &= is_token
    places = np.arange(ids.size).reshape(ids.shape)
    begins = np.maximum.accumulate(np.where(is_first, places, 0), axis=1)
    positions = np.where(is_token, places - begins, 0)
    documents = np.where(is_token, np.cumsum(is_first).reshape(ids.shape), 0)
    return positions, documents
