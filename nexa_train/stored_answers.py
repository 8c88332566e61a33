"""A teacher's stored log probabilities, found for the rows that a student is trained on."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, find_dataset
from nexa_models.encoding import Sequences
from nexa_models.stored import StoredTop

logger = logging.getLogger(__name__)

COLUMNS = ("request_sha256", "token_ids", "top_ids", "top_logprobs", "tail_mass")
MOST_DIFFERING = 0.05
"""Share of the rows that may be spelt in other tokens than their text is encoded in, as sampled answers sometimes are."""

Places = tuple[Sequence[int], list[list[int]], list[list[float]], list[float]]
"""Of an answer: its tokens, and at each the likeliest ones, their log probabilities, and the mass of the rest."""


def with_stored(sequences: Sequences, dataset: Dataset, key: str, layout: Layout) -> tuple[Sequences, Dataset]:
    """The sequences with what is stored of the answers they are, and the dataset that it is from.

    Raises:
        UserError: the dataset is not there or has none stored, or too few of the rows are answers that it has.
    """
    outputs = find_dataset(layout, key)
    wanted = _requests_of(dataset)
    stored = _read(outputs, set(wanted))
    flat, offsets = sequences.tokens.flat, sequences.tokens.offsets
    index = np.full(len(flat), -1, dtype=np.int64)
    ids, logprobs, tails = list[list[int]](), list[list[float]](), list[float]()
    num_missing = num_differing = 0
    for number, row in enumerate(sequences.rows_N.tolist()):
        found = stored.get(wanted[row] or "")
        if found is None:
            num_missing += 1
            continue
        places = np.flatnonzero(sequences.learned[offsets[number] : offsets[number + 1]]) + offsets[number]
        tokens, top_ids, top_logprobs, tail = found
        length = min(len(tokens), len(places))
        if len(places) - length > 1 or not np.array_equal(flat[places[:length]], np.asarray(tokens[:length])):
            num_differing += 1  # behind the answer itself only its end may follow
            continue
        index[places[:length]] = np.arange(len(tails), len(tails) + length)
        ids += top_ids[:length]
        logprobs += top_logprobs[:length]
        tails += tail[:length]
    _check(num_missing, num_differing, len(sequences), dataset, outputs)
    width = max(map(len, ids), default=1)
    made = StoredTop(
        index,
        np.array([[*each, *[-1] * (width - len(each))] for each in ids], dtype=np.int32).reshape(-1, width),
        np.array([[*each, *[0.0] * (width - len(each))] for each in logprobs], dtype=np.float32).reshape(-1, width),
        np.array(tails, dtype=np.float32),
    )
    return replace(sequences, stored=made), outputs


def _requests_of(dataset: Dataset) -> list[str | None]:
    """The digest of the request that each training row is the answer to."""
    column = dataset.read_split("train").column("extra_json").to_pylist()
    return [json.loads(extra or "{}").get("request_sha256") for extra in column]


def _read(outputs: Dataset, wanted: set[str | None]) -> Mapping[str, Places]:
    (path,) = outputs.check_split("teacher_outputs")
    found: dict[str, Places] = {}
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(512, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                if row["request_sha256"] in wanted and row["top_ids"] is not None:
                    found[row["request_sha256"]] = (
                        row["token_ids"],
                        row["top_ids"],
                        row["top_logprobs"],
                        row["tail_mass"],
                    )
    return found


def _check(num_missing: int, num_differing: int, num_rows: int, dataset: Dataset, outputs: Dataset) -> None:
    if num_missing:
        raise UserError(
            f"{num_missing:,} of {num_rows:,} rows of {dataset.key} have no log probabilities in {outputs.key}. Collect them "
            "with `sampling: {logprobs: 20}`, and filter those answers."
        )
    if num_differing > MOST_DIFFERING * num_rows:
        raise UserError(
            f"{num_differing:,} of {num_rows:,} rows of {dataset.key} are encoded in other tokens than the teacher wrote "
            "them in: its tokenizer is not the student's. Give the student the teacher's (filter.tokenizer.path), or use "
            "`loss: {name: sequence}`."
        )
    if num_differing:
        logger.warning(
            "%d of %d rows were written in other tokens than their text is encoded in; they are learned from as texts alone",
            num_differing, num_rows,
        )  # fmt: skip
