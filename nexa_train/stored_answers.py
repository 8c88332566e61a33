"""A teacher's stored log probabilities, found for the rows that a student is trained on."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import xxhash

from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, find_dataset
from nexa_models.encoding import Sequences
from nexa_models.spec import ModelSpec
from nexa_models.stored import PlacesInTheMaking
from nexa_models.vocabulary import vocabulary_size
from nexa_train.stored_file import StoredAnswers, check_tokenizers, read_answers

logger = logging.getLogger(__name__)

MOST_DIFFERING = 0.05
"""Share of the rows that may be spelt in other tokens than their text is encoded in, as sampled answers sometimes are."""
MISSING, DIFFERING, FOUND, EDITED = 0, 1, 2, 3
"""Edited: a person's own words, in which the teacher has no part."""


def with_stored(
    sequences: Sequences, dataset: Dataset, keys: Sequence[str], layout: Layout, spec: ModelSpec
) -> tuple[Sequences, tuple[Dataset, ...]]:
    """The sequences with what is stored of the answers they are, and the datasets that it is from.

    Args:
        keys: datasets of a teacher's answers, or of pairs, beside which the kept answers of all their sources lie. Where
            several have an answer, the first counts.

    Raises:
        UserError: a dataset is not there or has none stored, its ids are not of the student's tokenizer, or too few of the
            rows are answers that it has.
    """
    outputs = tuple(find_dataset(layout, key) for key in keys)
    for each in outputs:
        check_tokenizers(each, spec)
    requests, is_edited = _answers_of(dataset)
    matcher = _Matcher(sequences, requests[sequences.rows_N], is_edited[sequences.rows_N])
    for each in outputs:
        for answers in read_answers(each, num_ids=vocabulary_size(spec)):
            matcher.match(answers)
    _check(matcher.state_N, dataset, " and ".join(keys))
    return replace(sequences, stored=matcher.places.done(matcher.index)), outputs


class _Matcher:
    """Finds the sequences that answers are, and holds what is stored of those answers."""

    def __init__(self, sequences: Sequences, requests_N: np.ndarray, is_edited_N: np.ndarray):
        self._sequences = sequences
        self._order = np.argsort(requests_N, kind="stable")
        self._ordered = requests_N[self._order]
        self.state_N = np.where(is_edited_N, EDITED, MISSING).astype(np.int8)
        self.index = np.full(len(sequences.tokens.flat), -1, dtype=np.int64)
        self.places = PlacesInTheMaking(at_most=int(sequences.learned.sum()))

    def match(self, answers: StoredAnswers) -> None:
        requests = _numbers(answers.requests)
        begins, ends = (np.searchsorted(self._ordered, requests, side=side) for side in ("left", "right"))
        for row in np.flatnonzero(begins < ends).tolist():
            for number in self._order[begins[row] : ends[row]].tolist():
                if self.state_N[number] not in (FOUND, EDITED):
                    self._match(number, answers, row)

    def _match(self, number: int, answers: StoredAnswers, row: int) -> None:
        first, last = self._sequences.tokens.offsets[number : number + 2]
        targets = np.flatnonzero(self._sequences.learned[first:last]) + first
        begin, end = answers.offsets[row : row + 2].tolist()
        length = min(end - begin, len(targets))
        targets, num_behind = targets[:length], len(targets) - length
        if num_behind > 1 or not np.array_equal(
            self._sequences.tokens.flat[targets], answers.token_ids[begin:][:length]
        ):
            self.state_N[number] = DIFFERING  # behind the answer itself only its end may follow
            return
        self.state_N[number] = FOUND
        some = slice(begin, begin + length)
        self.index[targets] = self.places.add(
            answers.top_ids[some], answers.top_logprobs[some], answers.tail_mass[some]
        )


def _answers_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """For each training row the number of the request that it is the answer to, and whether a person edited it.

    Nobody asked what has no request.
    """
    column = dataset.read_split("train").column("extra_json")
    extras = [json.loads(extra.as_py() or "{}") for extra in column]
    requests = _numbers(extra.get("request_sha256") or "" for extra in extras)
    return requests, np.array([bool(extra.get("answer_edited")) for extra in extras], dtype=bool)


def _numbers(requests: Iterable[str]) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(each.encode()) for each in requests], dtype=np.uint64)


def _check(state_N: np.ndarray, dataset: Dataset, named: str) -> None:
    num_rows, num_missing, num_differing = (
        len(state_N),
        int((state_N == MISSING).sum()),
        int((state_N == DIFFERING).sum()),
    )
    if num_missing:
        raise UserError(
            f"{num_missing:,} of {num_rows:,} rows of {dataset.key} have no log probabilities in {named}. Collect them "
            "with `sampling: {logprobs: 20}`, and filter those answers; where they come from several datasets of answers, "
            "name all of them, or the filtered one."
        )
    if num_differing > MOST_DIFFERING * num_rows:
        raise UserError(
            f"{num_differing:,} of {num_rows:,} rows of {dataset.key} are encoded in other tokens than the teacher wrote "
            "them in: its tokenizer is not the student's. Give the student the teacher's (filter.tokenizer.path), or use "
            "`loss: {name: sequence}`."
        )
    if num_edited := int((state_N == EDITED).sum()):
        logger.info("%d of %d rows were edited by people; they are learned from as texts alone", num_edited, num_rows)
    if num_differing:
        logger.warning(
            "%d of %d rows were written in other tokens than their text is encoded in; they are learned from as texts alone",
            num_differing, num_rows,
        )  # fmt: skip
