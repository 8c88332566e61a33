"""A file of a teacher's answers with their log probabilities, read some rows at a time into flat arrays."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from nexa_core import digests
from nexa_core.errors import UserError
from nexa_data.datasets import Dataset
from nexa_data.encoder import encoding_digest
from nexa_models.spec import ModelSpec

IDS, FLOATS = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float32())
SCHEMA = pyarrow.schema(
    [
        ("row_id", pyarrow.string()),
        ("request_sha256", pyarrow.string()),
        ("token_ids", IDS),
        ("top_ids", pyarrow.list_(IDS)),
        ("top_logprobs", pyarrow.list_(FLOATS)),
        ("tail_mass", FLOATS),
    ]
)
TOKENIZER = "tokenizer_sha256"
ROWS_AT_ONCE = 128
DIGITS_SHOWN = 16


@dataclass(frozen=True)
class StoredAnswers:
    """Some answers, m places of all of them together; answer i has those from `offsets[i]` to `offsets[i + 1]`."""

    requests: list[str]
    offsets: np.ndarray
    token_ids: np.ndarray
    """(m,) int32: the answers themselves."""
    top_ids: np.ndarray
    """(m, K) int32, the likeliest first; -1 where there are fewer."""
    top_logprobs: np.ndarray
    """(m, K) float32"""
    tail_mass: np.ndarray
    """(m,) float32"""


def check_tokenizers(outputs: Dataset, spec: ModelSpec) -> None:
    """Raises UserError unless all stored ids are said to be of the student's tokenizer.

    It goes by the digest of what decides the ids of a text, so that it is the same however its file is laid out; that of the
    file's own bytes is taken as well.
    """
    assert spec.tokenizer is not None
    student = encoding_digest(spec.tokenizer)
    counts = _count_tokenizers(outputs)
    if num_unnamed := counts.pop(None, 0):
        raise UserError(
            f"{num_unnamed:,} rows of {outputs.key} do not say which tokenizer their ids are of ({TOKENIZER} is empty). Collect "
            "them again with `sampling.logprobs`, which buys no stored answer twice; or, if they are of the student's, write "
            f"its digest into that column: {student}"
        )
    if counts.keys() <= {student, digests.of_bytes(spec.tokenizer.encode())}:
        return
    mend = "Give the student the teacher's (filter.tokenizer.path), or use `loss: {name: sequence}`."
    theirs = [f"{str(name)[:DIGITS_SHOWN]} ({count:,} rows)" for name, count in counts.most_common()]
    if len(theirs) > 1:
        raise UserError(
            f"The ids in {outputs.key} are of {len(theirs)} tokenizers, {', '.join(theirs)}, and the student's is "
            f"{student[:DIGITS_SHOWN]}: an id means something else in each. Keep the answers of one teacher. {mend}"
        )
    raise UserError(
        f"The ids in {outputs.key} are of the tokenizer {theirs[0]} and the student's is {student[:DIGITS_SHOWN]}: an id means "
        f"something else in each. {mend}"
    )


def read_answers(outputs: Dataset, *, num_ids: int) -> Iterator[StoredAnswers]:
    """The answers that have log probabilities, in order.

    Args:
        num_ids: how many the student has.

    Raises:
        UserError: an id is beyond them, or an answer's columns do not fit together.
    """
    for batch in _batches(outputs, SCHEMA):
        yield _as_arrays(batch, outputs.key, num_ids)


def _batches(outputs: Dataset, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """The rows that have log probabilities, with these columns."""
    with parquet.ParquetFile(_file_of(outputs), pre_buffer=False) as file:
        if missing := [name for name in schema.names if name not in file.schema_arrow.names]:
            raise UserError(f"{outputs.key} has no column {' and no '.join(missing)}; it holds no log probabilities.")
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=schema.names):
            has = batch["tail_mass"].is_valid()
            yield batch.select(schema.names).filter(has).cast(schema)


def _file_of(outputs: Dataset) -> Path:
    """Of a dataset of answers the file itself; of pairs the one of the kept answers that they were made of."""
    if "filtered" in outputs.manifest:
        return outputs.check_file("filtered")
    (path,) = outputs.check_split("teacher_outputs")
    return path


def _count_tokenizers(outputs: Dataset) -> Counter[str | None]:
    counts: Counter[str | None] = Counter()
    for batch in _batches(outputs, pyarrow.schema([("tail_mass", FLOATS), (TOKENIZER, pyarrow.string())])):
        counts.update(batch[TOKENIZER].to_pylist())
    return counts


def _as_arrays(batch: pyarrow.RecordBatch, key: str, num_ids: int) -> StoredAnswers:
    lengths = _lengths(batch["token_ids"])
    for name in ("top_ids", "top_logprobs", "tail_mass"):
        if (unequal := _lengths(batch[name]) != lengths).any():
            row = int(np.flatnonzero(unequal)[0])
            raise UserError(
                f"{key}, row {batch['row_id'][row]}: {lengths[row]} token_ids and {_lengths(batch[name])[row]} {name}. Each "
                "place of an answer has to have all of them."
            )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids, logprobs = batch["top_ids"].flatten(), batch["top_logprobs"].flatten()
    counts_m = _lengths(ids)
    flat_ids, flat_logprobs = ids.flatten().to_numpy(), logprobs.flatten().to_numpy()
    outside = (flat_ids < 0) | (flat_ids >= num_ids)
    is_odd = _lengths(logprobs) != counts_m
    if outside.any():
        place = int(np.searchsorted(np.cumsum(counts_m), np.flatnonzero(outside)[0], side="right"))
        raise UserError(
            f"{key}, row {_row_at(batch, offsets, place)}: the likeliest tokens have the id {flat_ids[outside][0]:,}, and the "
            f"student's vocabulary has {num_ids:,} ids, from 0 on. They are another tokenizer's; collect them with the teacher "
            "whose tokenizer the student has."
        )
    if is_odd.any():
        place = int(np.flatnonzero(is_odd)[0])
        raise UserError(
            f"{key}, row {_row_at(batch, offsets, place)}: a place has other numbers of top_ids and top_logprobs."
        )
    return StoredAnswers(
        batch["request_sha256"].fill_null("").to_pylist(),
        offsets,
        batch["token_ids"].flatten().to_numpy(),
        _padded(flat_ids, counts_m, -1),
        _padded(flat_logprobs, counts_m, 0.0),
        batch["tail_mass"].flatten().to_numpy(),
    )


def _lengths(lists: pyarrow.Array) -> np.ndarray:
    """Of each list; 0 where there is none."""
    found: np.ndarray = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return found


def _row_at(batch: pyarrow.RecordBatch, offsets: np.ndarray, place: int) -> str:
    return str(batch["row_id"][int(np.searchsorted(offsets, place, side="right")) - 1])


def _padded(flat: np.ndarray, counts_m: np.ndarray, filling: float) -> np.ndarray:
    """(m, K) the values of each place, filled up behind them."""
    width = int(counts_m.max(initial=1))
    filled = np.full((len(counts_m), width), filling, dtype=flat.dtype)
    filled[np.arange(width) < counts_m[:, None]] = flat
    return filled
