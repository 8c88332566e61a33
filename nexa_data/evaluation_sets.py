"""The evaluation sets that a dataset is held against, so that no model is trained on what it will be asked."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as parquet

from nexa_core.config.overlaps import Decontamination
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.contamination import EvaluationIndex, find_contaminated, find_same, index_evaluation
from nexa_data.datasets import find_dataset
from nexa_data.quality import looked_at

logger = logging.getLogger(__name__)

SPLIT = "test"


class Overlap(NamedTuple):
    """What a row, the `row`-th of those given, has in common with evaluation texts."""

    row: int
    evaluation_ids: tuple[str, ...]
    """Of all evaluation rows that it repeats; the one that it covers most comes first."""
    coverage: float
    text: str
    """The longest piece of text that both have."""


@dataclass(frozen=True)
class HeldOut:
    """The rows of one evaluation set: the test split of the dataset `key`."""

    key: str
    kind: str
    path: Path
    manifest_path: Path
    file: str
    """`path` as manifests name it."""
    sha256: str

    def texts(self) -> Iterator[tuple[str, str]]:
        """The id of each row, with the dataset's key before it, and each text that gives it away: the whole, and the prompt."""
        looks = _looks(self.kind)
        for row in parquet.read_table(self.path).to_pylist():
            for look in looks:
                yield f"{self.key}/{row['row_id']}", look(row)


@dataclass(frozen=True)
class EvaluationSet:
    """Evaluation sets, in a form that travels to other processes."""

    settings: Decontamination
    members: tuple[HeldOut, ...]

    def index(self) -> EvaluationIndex:
        """The index of all their texts, made once in each process."""
        return _index_of(self)

    def overlaps(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> list[Overlap]:
        """What canonical rows of that kind have in common with the evaluation texts, in their order."""
        whole, *others = _looks(kind)
        texts = list(map(whole, rows))
        found = {
            each.row: Overlap(
                each.row, each.evaluation_ids, each.coverage, max((span.text for span in each.spans), key=len)
            )
            for each in find_contaminated(self.index(), texts)
        }
        for same in [texts, *(list(map(look, rows)) for look in others)]:
            for row, ids in find_same(self.index(), same):
                before = found[row].evaluation_ids if row in found else ()
                found[row] = Overlap(row, tuple(dict.fromkeys((*ids, *before))), 1.0, same[row])
        return [found[row] for row in sorted(found)]

    def facts(self) -> list[dict[str, Any]]:
        """Each evaluation set as manifests record it."""
        return [
            {"dataset": each.key, "split": SPLIT, "file": each.file, "sha256": each.sha256} for each in self.members
        ]

    def decides(self) -> dict[str, Any]:
        """All that has an influence on what is found in a row."""
        return {"settings": self.settings.searches(), "sets": [[each.key, each.sha256] for each in self.members]}


def open_evaluation_set(settings: Decontamination, layout: Layout) -> EvaluationSet:
    """The evaluation sets that the settings name.

    Raises:
        UserError: one of them is not prepared, has no test split or no texts, or its file was changed.
    """
    return EvaluationSet(settings, tuple(_held_out(layout, key) for key in sorted(set(settings.against))))


def _held_out(layout: Layout, key: str) -> HeldOut:
    dataset = find_dataset(layout, key)
    if dataset.kind == "features":
        raise UserError(f"decontaminate.against: the rows of {key} are numbers, in which there is no text to look for.")
    dataset.check_split(SPLIT)
    num_rows = dataset.num_rows
    if num_rows[SPLIT] == 0:
        raise UserError(
            f"decontaminate.against: {key} has no rows in its split {SPLIT}; prepare it with a larger share."
        )
    if num_rows[SPLIT] < sum(num_rows.values()):
        logger.info("looking for %s of the %s rows of %s, its split test", num_rows[SPLIT], sum(num_rows.values()), key)
    path = dataset.split_path(SPLIT)
    digest = dataset.split_digest(SPLIT)
    return HeldOut(key, dataset.kind, path, dataset.manifest_path, layout.relative(path), digest)


def _looks(kind: str) -> list[Callable[[Mapping[str, Any]], str]]:
    """What is looked at of a row: all of its text, and what a model is asked, where that is a part of it."""
    return [looked_at(kind, side) for side in (("all",) if kind == "text" else ("all", "prompt"))]


@lru_cache(maxsize=1)
def _index_of(evaluation: EvaluationSet) -> EvaluationIndex:
    rows = [row for member in evaluation.members for row in member.texts()]
    return index_evaluation([text for _, text in rows], [row_id for row_id, _ in rows], evaluation.settings)
