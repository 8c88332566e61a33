"""Whether a prepared dataset still is what its manifest says, and fit to be trained on."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from nexa_data import manifests
from nexa_data.datasets import Dataset
from nexa_data.identity import content_id, shown_of
from nexa_data.rows import SCHEMAS
from nexa_data.seen import Seen
from nexa_data.sequence_checks import sequence_problems

NUM_SHOWN = 3
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    check: str
    holds: bool
    says: str


@dataclass(frozen=True)
class Validation:
    dataset: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        return all(finding.holds for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "holds": self.holds,
            "checks": [{"name": each.check, "holds": each.holds, "says": each.says} for each in self.findings],
        }

    def as_text(self) -> str:
        lines = [f"{self.dataset}: {'sound' if self.holds else 'NOT sound'}"]
        width = max(len(each.check) for each in self.findings)
        lines += [f"  {'ok' if each.holds else 'BAD':<4} {each.check:<{width}} {each.says}" for each in self.findings]
        return "\n".join(lines)


def validate(dataset: Dataset) -> Validation:
    """Hold a dataset against its manifest: files first; what lies in damaged ones is not looked at."""
    files = _files(dataset)
    if not files.holds:
        return Validation(dataset.key, (files,))
    contents = _contents(dataset) if dataset.kind in SCHEMAS else _table(dataset)
    return Validation(dataset.key, (files, *contents))


def _files(dataset: Dataset) -> Finding:
    records = list(manifests.files_of(dataset.manifest))
    damages = [damage for record in records if (damage := manifests.damage(dataset.layout, record))]
    return Finding("files", not damages, "; ".join(damages) or f"{len(records)} files have their digests")


def _table(dataset: Dataset) -> Iterator[Finding]:
    """Of a table that is no rows to train on, such as a teacher's answers."""
    columns = [(column["name"], column["type"]) for column in dataset.manifest["columns"]]
    wrong_schema, wrong_counts = list[str](), list[str]()
    for split, expected in dataset.num_rows.items():
        with parquet.ParquetFile(dataset.split_path(split), pre_buffer=False) as file:
            if [(field.name, str(field.type)) for field in file.schema_arrow] != columns:
                wrong_schema.append(split)
            if file.metadata.num_rows != expected:
                wrong_counts.append(f"{split} has {file.metadata.num_rows:,} rows instead of {expected:,}")
    yield Finding("schema", not wrong_schema, _some(wrong_schema) or f"columns of {dataset.kind}")
    counted = f"{sum(dataset.num_rows.values()):,}, as many as the manifest says"
    yield Finding("rows", not wrong_counts, "; ".join(wrong_counts) or counted)


def _contents(dataset: Dataset) -> Iterator[Finding]:
    look = _Look(dataset)
    for split, expected in dataset.num_rows.items():
        look.through(split, expected)
    kind, labels = dataset.kind, sorted(look.unknown_labels)
    yield Finding("schema", not look.wrong_schema, _some(look.wrong_schema) or f"columns of {kind} rows")
    counted = f"{look.num_rows:,}, as many as the manifest says"
    yield Finding("rows", not look.wrong_counts, "; ".join(look.wrong_counts) or counted)
    yield Finding("ids", not (look.num_wrong or look.num_repeated), look.ids_text())
    if dataset.labels:
        yield Finding("labels", not labels, _some(labels) or f"{len(dataset.labels)} classes")
    if dataset.category == "training":
        yield _leaks(dataset, look)
    if dataset.sequence_tokens is not None:
        problems = sequence_problems(dataset)
        yield Finding(
            "sequences", not problems, "; ".join(problems) or "the documents' tokens, where the manifest says"
        )


class _Look:
    """What is found in a dataset's rows; holds 20 bytes a row."""

    def __init__(self, dataset: Dataset):
        self._dataset, self._ids = dataset, Seen()
        self.wrong_schema, self.wrong_counts = list[str](), list[str]()
        self.wrong_ids, self.num_wrong, self.num_repeated, self.num_rows = list[str](), 0, 0, 0
        self.unknown_labels: set[str] = set()
        self.inputs: dict[str, list[np.ndarray]] = {}
        """Hashes of the inputs, by the split that they are for."""

    def through(self, split: str, expected: int) -> None:
        with parquet.ParquetFile(self._dataset.split_path(split), pre_buffer=False) as file:
            if not file.schema_arrow.equals(SCHEMAS[self._dataset.kind]):
                self.wrong_schema.append(split)
                return
            if file.metadata.num_rows != expected:
                self.wrong_counts.append(f"{split} has {file.metadata.num_rows:,} rows instead of {expected:,}")
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                self._rows(split, batch.to_pylist())

    def ids_text(self) -> str:
        if self.num_wrong:
            more = f" and {self.num_wrong - NUM_SHOWN} more" if self.num_wrong > NUM_SHOWN else ""
            return f"{self.num_wrong:,} rows have other content than their id says: {', '.join(self.wrong_ids)}{more}"
        return f"{self.num_repeated:,} ids stand twice" if self.num_repeated else "each row has the id of its content"

    def _rows(self, split: str, rows: list[dict[str, Any]]) -> None:
        ids = [row.pop("row_id") for row in rows]
        self.num_rows += len(rows)
        self.num_repeated += int((self._ids.count(_hashes(row_id.encode() for row_id in ids)) > 0).sum())
        for row_id, row in zip(ids, rows, strict=True):
            if row_id.split("-")[0] != content_id(row)[0]:
                self.num_wrong += 1
                self.wrong_ids += [f"{split}/{row_id}"] if len(self.wrong_ids) < NUM_SHOWN else []
            if self._dataset.labels and row["label"] not in self._dataset.labels:
                self.unknown_labels.add(row["label"])
        inputs = _hashes(shown_of(self._dataset.kind, row) for row in rows)
        self.inputs.setdefault(_use_of(self._dataset, split), []).append(inputs)


def _leaks(dataset: Dataset, look: _Look) -> Finding:
    """Whether an input lies in two splits; where one does the rows are read again to name some."""
    distinct = {use: np.unique(np.concatenate(parts)) for use, parts in look.inputs.items()}
    everywhere = np.concatenate([np.empty(0, np.uint64), *distinct.values()])
    values, counts = np.unique(everywhere, return_counts=True)
    leaking = values[counts > 1]
    if not len(leaking):
        return Finding("leaks", True, "no input lies in two splits")
    shown = leaking[:NUM_SHOWN]
    places: dict[int, dict[str, str]] = {int(value): {} for value in shown}
    for split in dataset.num_rows:
        with parquet.ParquetFile(dataset.split_path(split), pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                rows = batch.to_pylist()
                hashes = _hashes(shown_of(dataset.kind, row) for row in rows)
                for row in np.flatnonzero(np.isin(hashes, shown)).tolist():
                    places[int(hashes[row])].setdefault(_use_of(dataset, split), rows[row]["row_id"])
    named = [f"{next(iter(found.values()))} in {' and '.join(found)}" for found in places.values()]
    return Finding("leaks", False, f"{len(leaking):,} inputs lie in two splits: {', '.join(named)}")


def _use_of(dataset: Dataset, split: str) -> str:
    return "train" if split in dataset.training_splits else split


def _hashes(values: Iterable[bytes]) -> np.ndarray:
    joined = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in values)
    return np.frombuffer(joined, dtype="<u8")


def _some(names: list[str]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else "")
