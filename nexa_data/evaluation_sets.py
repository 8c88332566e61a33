"""The evaluation sets that a dataset is held against, so that no model is trained on what it will be asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from nexa_core.config.overlaps import Decontamination
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.contamination import EvaluationIndex, index_evaluation
from nexa_data.datasets import find_dataset
from nexa_data.quality import looked_at

SPLIT = "test"


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
        """The id of each row, with the dataset's key before it, and all of its text."""
        look = looked_at(self.kind, "all")
        for row in parquet.read_table(self.path).to_pylist():
            yield f"{self.key}/{row['row_id']}", look(row)


@dataclass(frozen=True)
class EvaluationSet:
    """Evaluation sets, in a form that travels to other processes."""

    settings: Decontamination
    members: tuple[HeldOut, ...]

    def index(self) -> EvaluationIndex:
        """The index of all their texts, made once in each process."""
        return _index_of(self)

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
    path = dataset.split_path(SPLIT)
    digest = dataset.split_digest(SPLIT)
    return HeldOut(key, dataset.kind, path, dataset.manifest_path, layout.relative(path), digest)


@lru_cache(maxsize=1)
def _index_of(evaluation: EvaluationSet) -> EvaluationIndex:
    rows = [row for member in evaluation.members for row in member.texts()]
    return index_evaluation([text for _, text in rows], [row_id for row_id, _ in rows], evaluation.settings)
