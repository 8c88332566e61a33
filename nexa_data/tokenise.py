"""From documents to training sequences: encoded by all cores, put one after the other, cut to one length."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from nexa_core import digests, durable
from nexa_core.errors import UserError
from nexa_data.encoder import ID_DTYPE, open_encoder
from nexa_data.sequences import SCHEMA, TOKENS_LEAF, added, count_targets, find_tokens
from nexa_data.workers import in_order

GROUP_TOKENS = 4 * 2**20
GROUP_ROWS = 10_000
"""A row group ends at either. Arrow begins a new page after 20,000 rows, and ids have to lie in one."""
PAGE_BYTES = 2**30
"""More than any row group has."""
LISTS = ("tokens", "row_ids", "starts", "offsets")
LEAVES = (*(f"{name}.list.element" for name in LISTS), "num_targets", "num_begun")
PARALLEL_FROM_BYTES = 48 * 2**20
"""Fewer documents are encoded by this process: others take a second to begin."""

Task = tuple[Path, int]
"""A file of documents and the number of one of its row groups."""


@dataclass(frozen=True)
class Marks:
    """What stands around each document."""

    begin: int | None
    end: int


@dataclass(frozen=True)
class Encoded:
    """Some documents one after the other, with their marks."""

    row_ids: pyarrow.Array
    tokens: np.ndarray
    lengths_D: np.ndarray
    """Tokens of each document that are left."""
    num_before: int = 0
    """Tokens of the first document that are written already."""

    @classmethod
    def empty(cls) -> "Encoded":
        nothing = np.empty(0, dtype=np.int64)
        return cls(pyarrow.array([], pyarrow.string()), nothing.astype(ID_DTYPE), nothing)

    def joined(self, other: "Encoded") -> "Encoded":
        return Encoded(
            pyarrow.concat_arrays([self.row_ids, other.row_ids]),
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.lengths_D, other.lengths_D]),
            self.num_before,
        )

    def without(self, num_tokens: int) -> "Encoded":
        """What is left after so many tokens."""
        ends = np.cumsum(self.lengths_D)
        done = int(np.searchsorted(ends, num_tokens, side="right"))
        lengths = self.lengths_D[done:].copy()
        in_first = num_tokens - (int(ends[done - 1]) if done else 0)
        lengths[:1] -= in_first
        before = in_first + (0 if done else self.num_before)
        return Encoded(self.row_ids[done:], self.tokens[num_tokens:], lengths, before)


@dataclass(frozen=True)
class Written:
    """A shard that was written."""

    facts: dict[str, Any]
    """What a manifest says of it: rows, documents, tokens, offsets."""
    target_counts_V: np.ndarray
    """How often each token is to be predicted."""


def make_shards(
    documents: Iterable[tuple[Path, Path]], tokenizer: Path, marks: Marks, *, width: int, num_processes: int
) -> Iterator[Written]:
    """Write a shard of sequences for each file of documents.

    The bytes depend on the documents, the tokenizer and the width alone. Holds a few row groups in memory, no more.

    Args:
        documents: (the documents' file, the shard to write).
        tokenizer: its JSON.

    Raises:
        UserError: the tokenizer finds its own end mark inside a document.
        NexaError: a process that encodes was killed.
    """
    targets = dict(documents)
    encoded = _encode_all(list(targets), tokenizer, marks, num_processes)
    for source, groups in groupby(encoded, key=lambda each: each[0]):
        yield _write_shard(targets[source], (group for _, group in groups), width)


def _encode_all(
    sources: list[Path], tokenizer: Path, marks: Marks, num_processes: int
) -> Iterator[tuple[Path, Encoded]]:
    """Each row group of each file in order, and at least one of each file."""
    tasks: list[Task] = []
    num_bytes = 0
    for path in sources:
        metadata = parquet.read_metadata(path)
        tasks += [(path, group) for group in range(metadata.num_row_groups)]
        num_bytes += sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    is_small = num_processes == 1 or num_bytes < PARALLEL_FROM_BYTES
    encode = partial(_encode_group if is_small else _encode_in_worker, tokenizer=tokenizer, marks=marks)
    found = in_order(encode, tasks, 1 if is_small else num_processes)
    for (path, _), group in zip(tasks, found, strict=True):
        yield path, group


def _encode_in_worker(task: Task, tokenizer: Path, marks: Marks) -> Encoded:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    return _encode_group(task, tokenizer, marks)


def _encode_group(task: Task, tokenizer: Path, marks: Marks) -> Encoded:
    path, group = task
    encoder = open_encoder(tokenizer.read_text(encoding="utf-8"))
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        table = file.read_row_group(group, columns=["row_id", "completion"])
        encoded = list(encoder.encode([text or "" for text in table["completion"].to_pylist()]))
    begin, end = (b"" if mark is None else np.array([mark], ID_DTYPE).tobytes() for mark in (marks.begin, marks.end))
    lengths = np.array([len(begin) + len(ids) + len(end) for ids in encoded], dtype=np.int64) // ID_DTYPE.itemsize
    tokens = np.frombuffer(b"".join(chain.from_iterable((begin, ids, end) for ids in encoded)), ID_DTYPE)
    row_ids = table["row_id"].combine_chunks()
    is_end = np.zeros(len(tokens), dtype=bool)
    is_end[np.cumsum(lengths) - 1] = True
    if strays := np.flatnonzero((tokens == marks.end) & ~is_end).tolist():
        document = int(np.searchsorted(np.cumsum(lengths), strays[0], side="right"))
        raise UserError(
            f"The tokenizer reads its end mark (id {marks.end}) inside the document {row_ids[document]}, so that ends could "
            "not be told from text. Name another token as tokenizer.end."
        )
    return Encoded(row_ids, tokens, lengths)


def _write_shard(path: Path, groups: Iterable[Encoded], width: int) -> Written:
    group_tokens = width * max(1, min(GROUP_TOKENS // width, GROUP_ROWS))
    num_documents = num_tokens = 0
    target_counts_V = np.zeros(0, dtype=np.int64)
    sums: list[tuple[int, str]] = []
    with durable.create(path) as file:
        writer = parquet.ParquetWriter(
            file,
            SCHEMA,
            compression={leaf: "NONE" if leaf == TOKENS_LEAF else "zstd" for leaf in LEAVES},
            use_dictionary=False,
            column_encoding={TOKENS_LEAF: "PLAIN"},
            data_page_size=PAGE_BYTES,
            write_statistics=False,
        )
        with writer:
            for table in _cut(groups, group_tokens, width):
                writer.write_table(table, row_group_size=GROUP_ROWS)
                tokens = table["tokens"].combine_chunks().flatten().to_numpy()
                sums.append((len(tokens), digests.of_bytes(tokens.tobytes())))
                num_documents += int(table["num_begun"].to_numpy().sum())
                num_tokens += len(tokens)
                target_counts_V = added(target_counts_V, count_targets(table, width))
    offsets = find_tokens(path)
    _check_place(path, [at for at, _ in offsets], sums)
    facts = {
        "rows": sum(rows for _, rows in offsets),
        "documents": num_documents,
        "tokens": num_tokens,
        "offsets": [{"byte": at, "rows": rows} for at, rows in offsets],
    }
    return Written(facts, target_counts_V)


def _cut(groups: Iterable[Encoded], group_tokens: int, width: int) -> Iterator[pyarrow.Table]:
    """Row groups of so many tokens, however the documents come; the last may be smaller."""
    left = Encoded.empty()
    for group in groups:
        left = left.joined(group)
        while len(left.tokens) >= group_tokens:
            yield _table(left, group_tokens, width)
            left = left.without(group_tokens)
    if len(left.tokens):
        yield _table(left, len(left.tokens), width)


def _table(encoded: Encoded, num_tokens: int, width: int) -> pyarrow.Table:
    """The first tokens as sequences; one document is a piece in each sequence that it reaches into."""
    ends_D = np.cumsum(encoded.lengths_D)
    num_documents = int(np.searchsorted(ends_D, num_tokens, side="left")) + 1
    begins_D, ends_D = (ends_D - encoded.lengths_D)[:num_documents], ends_D[:num_documents]
    num_rows = -(-num_tokens // width)
    first_D, last_D = begins_D // width, (np.minimum(ends_D, num_tokens) - 1) // width
    pieces_D = last_D - first_D + 1
    document_P = np.repeat(np.arange(num_documents), pieces_D)
    row_P = first_D[document_P] + np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
    place_P = np.maximum(begins_D[document_P], row_P * width)
    before_P = place_P - begins_D[document_P] + np.where(document_P == 0, encoded.num_before, 0)
    pieces = np.concatenate([[0], np.cumsum(np.bincount(row_P, minlength=num_rows))])
    widths = np.diff(np.minimum(np.arange(num_rows + 1) * width, num_tokens))
    num_ended = np.bincount((ends_D[ends_D <= num_tokens] - 1) // width, minlength=num_rows)
    columns = {
        "tokens": (np.concatenate([[0], np.cumsum(widths)]), pyarrow.array(encoded.tokens[:num_tokens])),
        "row_ids": (pieces, encoded.row_ids.take(pyarrow.array(document_P))),
        "starts": (pieces, pyarrow.array((place_P - row_P * width).astype(np.int32))),
        "offsets": (pieces, pyarrow.array(before_P)),
    }
    arrays = [
        pyarrow.ListArray.from_arrays(pyarrow.array(offsets.astype(np.int32)), values, type=SCHEMA.field(name).type)
        for name, (offsets, values) in columns.items()
    ]
    counts = (widths - num_ended, np.bincount(row_P[before_P == 0], minlength=num_rows))
    return pyarrow.table([*arrays, *(pyarrow.array(each.astype(np.int32)) for each in counts)], schema=SCHEMA)


def _check_place(path: Path, begins: list[int], sums: list[tuple[int, str]]) -> None:
    """Read the ids where readers will look for them: a Parquet writer that lays them out otherwise must not go unnoticed."""
    with path.open("rb") as file:
        for begin, (num_tokens, digest) in zip(begins, sums, strict=True):
            file.seek(begin)
            found = digests.of_bytes(file.read(num_tokens * ID_DTYPE.itemsize))
            assert found == digest, f"{path}: the ids of the row group at byte {begin} do not lie where they should"
