"""The numbers of an overview, measured in one pass over a dataset's files."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute as compute

from nexa_data.datasets import Dataset
from nexa_data.overview.sampling import read_groups
from nexa_data.overview.tally import Tally
from nexa_data.split import HELD_OUT

MAX_VALUES = 1_000_000
"""Of all classes' means, which take memory and room in the page; where there are more, none are made."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Lengths:
    """How long the texts of one column are, by split."""

    column: str
    chars: Mapping[str, Tally]
    words: Mapping[str, Tally]


@dataclass(frozen=True)
class Pixels:
    """The values of a class's features: their sum, value by value, over how many rows."""

    label: str
    total: np.ndarray
    count: int


@dataclass(frozen=True)
class Statistics:
    num_measured: Mapping[str, int]
    """Rows of each split whose lengths or features were measured; fewer than it has where they are a sample."""
    labels: Mapping[str, Mapping[str, int]]
    """Rows of each split, of all of them, for each class; numbers in their order, words with the commonest first."""
    lengths: tuple[Lengths, ...]
    turns: Mapping[str, Tally]
    """Messages in a conversation."""
    pixels: tuple[Pixels, ...]


def split_paths(dataset: Dataset) -> dict[str, list[Path]]:
    """The files of each split that has rows: of a pretraining dataset's `train` all shards."""
    shards = dataset.training_splits
    names = {"train": shards} if shards != ("train",) else {}
    names |= {split: (split,) for split in dataset.num_rows if not (names and split not in HELD_OUT)}
    return {
        split: [dataset.split_path(file) for file in files if dataset.num_rows[file]]
        for split, files in names.items()
        if any(dataset.num_rows[file] for file in files)
    }


def measure(dataset: Dataset, *, is_sample: bool) -> Statistics:
    """Measure a dataset's rows: all of them, or of lengths and features a sample.

    Classes are counted over all rows in either case.
    """
    paths = split_paths(dataset)
    gathered = _Gathered(
        dataset.kind, with_pixels=len(dataset.labels) * math.prod(dataset.feature_shape or ()) <= MAX_VALUES
    )
    for split, files in paths.items():
        for table in read_groups(files, gathered.columns, is_sample=is_sample):
            gathered.add(split, table)
    return Statistics(
        num_measured=dict(gathered.num_rows),
        labels=_labels(paths) if dataset.labels else {},
        lengths=gathered.lengths(),
        turns=gathered.turns,
        pixels=gathered.pixels(),
    )


def _labels(paths: Mapping[str, list[Path]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in paths}
    for split, files in paths.items():
        for table in read_groups(files, ["label"], is_sample=False):
            for found in compute.value_counts(table["label"]).to_pylist():
                counts[split][found["values"]] += found["counts"]
    total = sum(counts.values(), Counter[str]())
    ordered = sorted(total, key=int if all(map(str.isdecimal, total)) else lambda label: (-total[label], label))
    return {label: {split: counts[split][label] for split in paths} for label in ordered}


def count_words(texts: pyarrow.Array) -> np.ndarray:
    """The words of each text, which are what white space parts."""
    trimmed = compute.utf8_trim_whitespace(texts)
    parts = compute.list_value_length(compute.utf8_split_whitespace(trimmed)).to_numpy(zero_copy_only=False)
    is_empty = compute.equal(compute.binary_length(trimmed), 0).to_numpy(zero_copy_only=False)
    return np.where(is_empty, 0, parts)


def _whole(name: str) -> Callable[[pyarrow.Table], Iterator[tuple[str, pyarrow.Array]]]:
    return lambda table: iter([(name, table[name].combine_chunks().drop_null())])


def _sides(table: pyarrow.Table) -> Iterator[tuple[str, pyarrow.Array]]:
    for side in ("prompt", "completion"):
        yield from _whole(side)(table)


def _said(table: pyarrow.Table) -> Iterator[tuple[str, pyarrow.Array]]:
    """Of each role what it says, message by message."""
    messages = compute.list_flatten(table["messages"].combine_chunks())
    roles, contents = messages.field("role"), messages.field("content")
    for role in ROLES:
        yield role, contents.filter(compute.equal(roles, role))


COLUMNS = {
    "features": ["features", "label"],
    "text": ["text"],
    "pairs": ["prompt", "completion"],
    "chat": ["messages"],
}
"""What is read of each kind of rows, `label` aside."""
TEXTS: dict[str, Callable[[pyarrow.Table], Iterator[tuple[str, pyarrow.Array]]]] = {
    "features": lambda table: iter(()),
    "text": _whole("text"),
    "pairs": _sides,
    "chat": _said,
}


class _Gathered:
    """What has been measured so far."""

    def __init__(self, kind: str, *, with_pixels: bool):
        self._texts = TEXTS[kind]
        self.columns = COLUMNS[kind]
        self._with_pixels = with_pixels
        self.num_rows: Counter[str] = Counter()
        self.turns: dict[str, Tally] = {}
        self._chars: dict[str, dict[str, Tally]] = {}
        self._words: dict[str, dict[str, Tally]] = {}
        self._pixels: dict[str, Pixels] = {}

    def add(self, split: str, table: pyarrow.Table) -> None:
        self.num_rows[split] += len(table)
        for column, texts in self._texts(table):
            if len(texts):
                chars = self._chars.setdefault(column, {}).setdefault(split, Tally())
                words = self._words.setdefault(column, {}).setdefault(split, Tally())
                chars.add(compute.utf8_length(texts).to_numpy())
                words.add(count_words(texts))
        if "messages" in self.columns:
            self.turns.setdefault(split, Tally()).add(compute.list_value_length(table["messages"]).to_numpy())
        if "features" in self.columns and self._with_pixels:
            self._add_features(table)

    def _add_features(self, table: pyarrow.Table) -> None:
        rows = table["features"].combine_chunks()
        values = rows.flatten().to_numpy().reshape(len(rows), -1).astype(np.float64)
        labels = table["label"].to_numpy()
        for label in np.unique(labels.astype(str)):
            of_label = values[labels == label]
            before = self._pixels.get(label, Pixels(label, np.zeros(values.shape[1]), 0))
            self._pixels[label] = Pixels(label, before.total + of_label.sum(axis=0), before.count + len(of_label))

    def lengths(self) -> tuple[Lengths, ...]:
        return tuple(Lengths(column, self._chars[column], self._words[column]) for column in self._chars)

    def pixels(self) -> tuple[Pixels, ...]:
        return tuple(self._pixels[label] for label in sorted(self._pixels))
