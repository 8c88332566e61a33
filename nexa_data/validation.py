"""Whether a prepared dataset still is what its manifest says, and fit to be trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as parquet

from nexa_data import manifests
from nexa_data.datasets import Dataset
from nexa_data.identity import content_id, shown_of
from nexa_data.rows import SCHEMAS
from nexa_data.sequence_checks import sequence_problems

NUM_SHOWN = 3


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
    return Validation(dataset.key, (files, *_contents(dataset)))


def _files(dataset: Dataset) -> Finding:
    records = list(manifests.files_of(dataset.manifest))
    damages = [damage for record in records if (damage := manifests.damage(dataset.layout, record))]
    return Finding("files", not damages, "; ".join(damages) or f"{len(records)} files have their digests")


def _contents(dataset: Dataset) -> Iterator[Finding]:
    schema, wrong_schema, wrong_counts = SCHEMAS[dataset.kind], list[str](), list[str]()
    wrong_ids, unknown_labels = list[str](), set[str]()
    split_of: dict[bytes, str] = {}
    leaks, num_leaks, num_rows, repeated = list[str](), 0, 0, 0
    seen: set[str] = set()
    for split, expected in dataset.num_rows.items():
        name = "train" if split in dataset.training_splits else split
        with parquet.ParquetFile(dataset.split_path(split)) as file:
            if not file.schema_arrow.equals(schema):
                wrong_schema.append(split)
                continue
            if file.metadata.num_rows != expected:
                wrong_counts.append(f"{split} has {file.metadata.num_rows:,} rows instead of {expected:,}")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    num_rows += 1
                    row_id = row.pop("row_id")
                    repeated += row_id in seen
                    seen.add(row_id)
                    if row_id.split("-")[0] != content_id(row)[0]:
                        wrong_ids.append(f"{split}/{row_id}")
                    if dataset.labels and row["label"] not in dataset.labels:
                        unknown_labels.add(row["label"])
                    other = split_of.setdefault(shown_of(dataset.kind, row), name)
                    if other != name:
                        num_leaks += 1
                        leaks.append(f"{row_id} in {other} and {name}") if len(leaks) < NUM_SHOWN else None
    yield Finding("schema", not wrong_schema, _some(wrong_schema) or f"columns of {dataset.kind} rows")
    yield Finding("rows", not wrong_counts, "; ".join(wrong_counts) or f"{num_rows:,}, as many as the manifest says")
    yield Finding("ids", not (wrong_ids or repeated), _ids_text(wrong_ids, repeated))
    if dataset.labels:
        yield Finding("labels", not unknown_labels, _some(sorted(unknown_labels)) or f"{len(dataset.labels)} classes")
    if dataset.category == "training":
        says = (
            f"{num_leaks:,} inputs lie in two splits: {', '.join(leaks)}"
            if num_leaks
            else "no input lies in two splits"
        )
        yield Finding("leaks", not num_leaks, says)
    if dataset.sequence_tokens is not None:
        problems = sequence_problems(dataset)
        yield Finding(
            "sequences", not problems, "; ".join(problems) or "the documents' tokens, where the manifest says"
        )


def _ids_text(wrong: list[str], repeated: int) -> str:
    if wrong:
        return f"{len(wrong):,} rows have other content than their id says: {_some(wrong)}"
    return f"{repeated:,} ids stand twice" if repeated else "each row has the id of its content"


def _some(names: list[str]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else "")
