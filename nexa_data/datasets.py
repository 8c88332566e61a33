"""Prepared datasets as training and evaluation read them: found by name, checked against their digests."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import CATEGORIES, Layout
from nexa_data import manifests
from nexa_data.sequences import Shard

PREPARE = "python -m nexa_data.prepare --config configs/data.yaml"
MAKERS = {
    "teacher_outputs": "python -m nexa_distill.collect_teacher --replace",
    "sft_datasets": "python -m nexa_distill.filter_pairs --replace",
}
"""Of an output that others make."""


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset. `kind` names its rows' columns: see `nexa_data.rows.SCHEMAS`."""

    layout: Layout
    manifest_path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def key(self) -> str:
        return f"{self.name}_{self.version}"

    @property
    def category(self) -> str:
        return str(self.manifest["category"])

    @property
    def kind(self) -> str:
        """ "features", "text", "pairs" or "chat"."""
        return str(self.manifest["kind"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label of every split, sorted as text; none for pairs and chat."""
        return tuple(self.manifest["labels"])

    @property
    def feature_shape(self) -> tuple[int, ...] | None:
        shape = self.manifest["feature_shape"]
        return None if shape is None else tuple(shape)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split, or of each shard."""
        return {split: record["rows"] for split, record in self.manifest["splits"].items()}

    @property
    def training_splits(self) -> tuple[str, ...]:
        """The splits that a model may be trained on, in order: a pretraining dataset's shards, else `train`."""
        return manifests.training_splits(self.manifest)

    def splits_of(self, split: str) -> tuple[str, ...]:
        """The splits, each a file of its own, that make up `split`: of a pretraining dataset's `train` all shards."""
        return self.training_splits if split == "train" else (split,)

    def read_split(self, split: str) -> pyarrow.Table:
        """All rows of a split, once its files' digests have shown that they are those which were prepared.

        Of a pretraining dataset, `train` is all shards one after the other, and each shard a split as well; rows are its
        documents, also where the shards themselves hold token sequences (`sequence_shards`).

        Raises:
            UserError: there is no such split, or a file of it is missing or changed.
        """
        paths = self.check_split(split)
        return pyarrow.concat_tables([parquet.ParquetFile(path, memory_map=True).read() for path in paths])

    def check_split(self, split: str) -> list[Path]:
        """The files of a split, once their digests have shown that they are those which were prepared.

        Raises:
            UserError: there is no such split, or a file of it is missing or changed.
        """
        return [self._checked(self._record(each)) for each in self.splits_of(split)]

    def check_file(self, name: str) -> Path:
        """The path of what lies beside the rows, "scores", "overlaps" or "rejects", of a dataset that has it.

        Raises:
            UserError: it is missing or changed.
        """
        return self._checked(self.manifest[name])

    def split_path(self, split: str) -> Path:
        return self.layout.absolute(self._record(split)["path"])

    def split_digest(self, split: str) -> str:
        """The sha256 of a split's file."""
        return str(self._record(split)["sha256"])

    def tokenizer_json(self) -> str | None:
        """The tokenizer as `tokenizers.Tokenizer.from_str` takes it; None where the dataset has none.

        Raises:
            UserError: its file is missing or changed.
        """
        record = self.manifest["tokenizer"]
        return None if record is None else self._checked(record).read_text(encoding="utf-8")

    @property
    def sequence_tokens(self) -> int | None:
        """Tokens of each training sequence; None where the training rows are not encoded yet."""
        sequences = self._sequences
        return None if sequences is None else int(sequences["width"])

    @property
    def sequence_marks(self) -> tuple[int | None, int]:
        """The ids in front of each document of the training sequences (None: nothing) and behind it."""
        sequences = self._sequences
        assert sequences is not None
        return sequences["begin"], sequences["end"]

    def sequence_shards(
        self, shards: Iterable[str] | None = None, *, share: int = 0, num_shares: int = 1
    ) -> list[Shard]:
        """The files of training sequences, of all shards or of some, once their digests have held.

        Processes of one machine may each take a share of the digests; all look whether the files are there, and their sizes.

        Raises:
            UserError: a file is missing or changed.
        """
        records = self.sequence_records
        chosen = records if shards is None else {shard: records[shard] for shard in shards}
        return [
            Shard.of(self._checked(record, by_size_alone=number % num_shares != share), record)
            for number, record in enumerate(chosen.values())
        ]

    def target_counts(self) -> Path | None:
        """The file of how often each token of the training sequences is to be predicted; None where none was made.

        Raises:
            UserError: it is missing or changed.
        """
        sequences = self._sequences or {}
        return self._checked(sequences["targets"]) if "targets" in sequences else None

    @property
    def sequence_records(self) -> Mapping[str, Mapping[str, Any]]:
        """What the manifest says of each shard of training sequences; nothing where there are none."""
        sequences = self._sequences
        return {} if sequences is None else sequences["shards"]

    @property
    def _sequences(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self.manifest.get("sequences")
        return found

    def require_whole(self) -> None:
        """Hold each of its files against its digest.

        Raises:
            UserError: one is missing or changed.
        """
        for record in manifests.files_of(self.manifest):
            self._checked(record)

    @property
    def _made_as(self) -> str:
        return str(self.manifest["config"].get("output", {}).get("name"))

    def _record(self, split: str) -> Mapping[str, Any]:
        records: Mapping[str, Mapping[str, Any]] = self.manifest["splits"]
        if split not in records:
            hint = did_you_mean(split, records)
            raise UserError(f"Dataset {self.key} has no split '{split}'.{hint} There: {self._shown_splits()}")
        return records[split]

    def _shown_splits(self) -> str:
        """The names of all splits; shards, of which there may be thousands, by their first and last."""
        splits, shards = self.manifest["splits"], self.training_splits
        if shards == ("train",):
            return ", ".join(splits)
        others = [split for split in splits if split not in shards]
        return ", ".join([f"{shards[0]} to {shards[-1]} (together: train)", *others])

    def _checked(self, record: Mapping[str, Any], *, by_size_alone: bool = False) -> Path:
        if problem := manifests.damage(self.layout, record, by_size_alone=by_size_alone):
            raise UserError(f"Dataset {self.key}: {problem}. Make it again: {MAKERS.get(self._made_as, PREPARE)}")
        return self.layout.absolute(record["path"])


def open_dataset(layout: Layout, name: str, version: str, *, category: str = "training") -> Dataset:
    """The dataset of that name and version.

    Raises:
        UserError: there is none; says which there are, and how to make them.
    """
    path = layout.dataset_manifests(category) / f"{name}_{version}.json"
    manifest = manifests.read_manifest(path)
    if manifest is None:
        known = [dataset.key for dataset in list_datasets(layout) if dataset.category == category]
        hint = did_you_mean(f"{name}_{version}", known)
        there = ", ".join(known) or "none"
        raise UserError(
            f"No {category} dataset {name}_{version}.{hint} There: {there}. Datasets are made by: "
            f"{MAKERS['sft_datasets'].removesuffix(' --replace') if category == 'distillation' else PREPARE}"
        )
    return Dataset(layout, path, manifest)


def find_dataset(layout: Layout, key: str) -> Dataset:
    """The dataset called ``<name>_<version>``.

    Raises:
        UserError: there is none, or one in each of several categories.
    """
    datasets = list_datasets(layout)
    found = [dataset for dataset in datasets if dataset.key == key]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"There are several datasets {key}: of {' and '.join(each.category for each in found)}.")
    known = [dataset.key for dataset in datasets]
    raise UserError(f"No dataset {key}.{did_you_mean(key, known)} There: {', '.join(known) or 'none'}.")


def list_datasets(layout: Layout) -> list[Dataset]:
    """Every dataset there is, by category and key."""
    return [
        Dataset(layout, path, manifest)
        for category in CATEGORIES
        for path, manifest in manifests.list_manifests(layout, category)
    ]
