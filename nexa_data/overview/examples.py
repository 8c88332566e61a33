"""Rows to look at: a few of each split, and a few of those that were left out."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nexa_data.datasets import Dataset
from nexa_data.overview.sampling import read_groups, spaced
from nexa_data.overview.statistics import split_paths

NUM_OF_SPLIT = 3
NUM_PICTURES = 24
MAX_VALUES = 100_000
"""Of a split's pictures, each of which takes room in the page."""
NUM_OF_REASON = 2
NUM_REPEATED = 5
MAX_CHARS = 600
MAX_MESSAGES = 6
SAMPLE_LINES = 3_000
"""Lines of the rejects that are read for a sample."""
DUPLICATE = re.compile(r"duplicate of ([\w-]+)")


@dataclass(frozen=True)
class Row:
    """A row of the dataset."""

    row_id: str
    label: str | None
    texts: tuple[tuple[str, str], ...]
    """What each part of it is, and the beginning of what it says."""
    num_more: int
    """Messages that are not shown."""
    features: tuple[float, ...] | None


@dataclass(frozen=True)
class LeftOut:
    """A row that was left out."""

    file: str
    line: int | None
    reason: str
    raw: str


@dataclass(frozen=True)
class Rejected:
    """What lies in the rejects, or in the first lines of it."""

    num_read: int
    examples: tuple[LeftOut, ...]
    repeated: tuple[tuple[str, int, str], ...]
    """(row id, copies left out, beginning of the row) of the rows with the most duplicates."""


def example_rows(dataset: Dataset) -> dict[str, list[Row]]:
    """A few rows of each split, evenly spaced over the beginning of its first file."""
    size = math.prod(dataset.feature_shape or ())
    count = max(NUM_OF_SPLIT, min(NUM_PICTURES, MAX_VALUES // size)) if dataset.kind == "features" else NUM_OF_SPLIT
    found = {}
    for split, paths in split_paths(dataset).items():
        first = next(read_groups(paths[:1], _columns(dataset.kind), is_sample=True))
        found[split] = [_row(values) for values in first.take(spaced(len(first), count)).to_pylist()]
    return found


def _columns(kind: str) -> list[str]:
    of_kind = {"features": ["features", "label"], "text": ["text", "label"], "pairs": ["prompt", "completion"]}
    return ["row_id", *of_kind.get(kind, ["messages"])]


def _row(values: Mapping[str, Any]) -> Row:
    messages = values.get("messages") or []
    texts = [(name, values[name]) for name in ("text", "prompt", "completion") if values.get(name) is not None]
    texts += [(message["role"], message["content"]) for message in messages[:MAX_MESSAGES]]
    features = values.get("features")
    return Row(
        row_id=values["row_id"],
        label=values.get("label"),
        texts=tuple((name, clipped(text)) for name, text in texts),
        num_more=max(0, len(messages) - MAX_MESSAGES),
        features=None if features is None else tuple(features),
    )


def read_rejects(dataset: Dataset, *, is_sample: bool) -> Rejected:
    """Look through the rows that were left out: for examples of each reason, and for what came most often."""
    most_lines = SAMPLE_LINES if is_sample else None
    examples: defaultdict[str, list[LeftOut]] = defaultdict(list)
    copies: Counter[str] = Counter()
    num_read = 0
    for line in _lines(dataset, most_lines):
        num_read += 1
        if duplicate := DUPLICATE.search(line["reason"]):
            copies[duplicate[1]] += 1
        of_reason = examples[line["reason"].partition(":")[0].partition(" of ")[0]]
        if len(of_reason) < NUM_OF_REASON:
            of_reason.append(LeftOut(line["file"], line["line"], line["reason"], clipped(line["raw"])))
    repeated = sorted(copies.items(), key=lambda each: (-each[1], each[0]))[:NUM_REPEATED]
    texts = _texts(_lines(dataset, most_lines), {row_id for row_id, _ in repeated})
    return Rejected(
        num_read,
        tuple(example for of_reason in examples.values() for example in of_reason),
        tuple((row_id, count, texts[row_id]) for row_id, count in repeated),
    )


def _texts(lines: Iterator[dict[str, Any]], wanted: set[str]) -> dict[str, str]:
    """The beginning of the first copy of each wanted row."""
    found: dict[str, str] = {}
    for line in lines if wanted else ():
        duplicate = DUPLICATE.search(line["reason"])
        if duplicate and duplicate[1] in wanted - found.keys():
            found[duplicate[1]] = clipped(line["raw"])
            if len(found) == len(wanted):
                break
    return found


def _lines(dataset: Dataset, most: int | None) -> Iterator[dict[str, Any]]:
    with dataset.layout.absolute(dataset.manifest["rejects"]["path"]).open(encoding="utf-8") as file:
        yield from map(json.loads, islice(file, most))


def clipped(text: str) -> str:
    """The beginning of a text."""
    return text[:MAX_CHARS] + ("…" if len(text) > MAX_CHARS else "")
