"""How equal two runs are: byte for byte, in their results, within a tolerance, or not; and from which step on not."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["exact", "same results", "within tolerance", "diverged"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Exact: every byte that the run recorded. Same results: weights, predictions and scores are equal to the last bit,
and the files differ only in what they say of the code that wrote them."""
RESULTS = ("metrics.json", "predictions.parquet")


@dataclass(frozen=True)
class Split:
    """The first step of which two runs recorded other numbers."""

    step: int
    name: str
    recorded: float | None
    repeated: float | None

    def as_text(self) -> str:
        return f"step {self.step}: {self.name} {self.recorded!r}, now {self.repeated!r}"


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    num_files: int
    differing_files: tuple[str, ...]
    weights_equal: bool | None
    """None where the recorded ones are not there to be looked at."""
    first_split: Split | None
    has_steps: bool
    """Whether both runs recorded their steps."""
    scores: dict[str, tuple[float, float]]
    """Recorded and repeated."""
    largest_difference: float
    """Of any score, relative to the recorded one."""

    def as_json(self) -> dict[str, Any]:
        split = None if self.first_split is None else vars(self.first_split)
        return {**vars(self), "first_split": split, "differing_files": list(self.differing_files)}


def judge(
    recorded: dict[str, str],
    repeated: dict[str, str],
    *,
    scores: tuple[dict[str, float], dict[str, float]],
    steps: tuple[Path, Path],
    weights_equal: bool | None,
    tolerance: float,
) -> Verdict:
    """Hold a second run against the first.

    Args:
        recorded: SHA-256 of each file of the first, by name; `repeated` of the second.
        steps: the `metrics.jsonl` of each.
        tolerance: how far a score may be off, relative to the recorded one.
    """
    differing = tuple(sorted(name for name in {*recorded, *repeated} if recorded.get(name) != repeated.get(name)))
    has_steps = all(path.is_file() for path in steps)
    split = first_split(*steps) if has_steps else None
    largest = largest_difference(*scores)
    if not differing:
        kind: Kind = "exact"
    elif not {*RESULTS} & {*differing} and weights_equal is not False and split is None:
        kind = "same results"
    else:
        kind = "within tolerance" if largest <= tolerance else "diverged"
    both = {name: (value, scores[1].get(name, math.nan)) for name, value in scores[0].items()}
    return Verdict(kind, len(recorded), differing, weights_equal, split, has_steps, both, largest)


def largest_difference(recorded: dict[str, float], repeated: dict[str, float]) -> float:
    """The largest of all scores, relative to the recorded one; infinite where the two have other scores."""
    if recorded.keys() != repeated.keys():
        return math.inf
    return max((_distance(value, repeated[name]) for name, value in recorded.items()), default=0.0)


def first_split(recorded: Path, repeated: Path) -> Split | None:
    """The first line of two records of steps in which a number differs; both are read no further than that."""
    nothing: dict[str, Any] = {}
    for ours, theirs in zip_longest(_lines(recorded), _lines(repeated), fillvalue=nothing):
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if names:
            step = ours.get("step", theirs.get("step", 0))
            name = next((each for each in names if each != "step"), names[0])
            return Split(int(step), name, ours.get(name), theirs.get(name))
    return None


def _distance(recorded: float, repeated: float) -> float:
    if recorded == repeated or (math.isnan(recorded) and math.isnan(repeated)):
        return 0.0
    distance = abs(recorded - repeated) / max(abs(recorded), 1e-12)
    return math.inf if math.isnan(distance) else distance


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)
