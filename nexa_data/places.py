"""Where the files of a dataset lie: the contract that the rest of the laboratory reads by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core.config.data import DatasetConfig
from nexa_core.paths import Layout
from nexa_data.split import HELD_OUT


@dataclass(frozen=True)
class Places:
    """The paths of one dataset's files."""

    layout: Layout
    config: DatasetConfig

    @property
    def category(self) -> str:
        return "distillation" if self.config.output.name == "teacher_inputs" else "training"

    @property
    def folder(self) -> Path:
        return self.layout.processed / self.category

    def split(self, split: str) -> Path:
        """The file of a split's rows; a pretraining shard is called after its number alone.

        Where shards hold token sequences, the documents that those are made of lie beside them.
        """
        output = self.config.output
        if output.name == "pretrain" and split not in HELD_OUT:
            if output.sequence_tokens is None:
                return self.shard(split)
            return self.folder / "documents" / f"{self.config.key}_{split}.parquet"
        return self.folder / split / f"{self.config.key}.parquet"

    def shard(self, number: str) -> Path:
        """The file of a pretraining shard, of documents or of token sequences."""
        return self.folder / "pretrain" / f"{number}.parquet"

    @property
    def target_counts(self) -> Path:
        """How often each token is to be predicted, in all shards of token sequences."""
        return self.folder / "target_counts" / f"{self.config.key}.parquet"

    @property
    def manifest(self) -> Path:
        return self.layout.dataset_manifests(self.category) / f"{self.config.key}.json"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizers" / f"{self.config.key}.json"

    @property
    def scores(self) -> Path:
        return self.folder / "scores" / f"{self.config.key}.parquet"

    @property
    def overlaps(self) -> Path:
        return self.folder / "overlaps" / f"{self.config.key}.parquet"

    @property
    def rejects(self) -> Path:
        return self.folder / "rejects" / f"{self.config.key}.jsonl"

    @property
    def refused_rejects(self) -> Path:
        """The rejects of an attempt to replace a dataset that stands, until the attempt has passed its gates."""
        return self.folder / "rejects" / f"{self.config.key}.refused.jsonl"

    @property
    def replaced(self) -> Path:
        """What stood here, until the dataset that replaces it is whole."""
        return self.folder / ".replaced" / self.config.key

    @property
    def parts(self) -> Path:
        """What was made of a source's pieces, for when a part of it changes, in this version or the next; safe to delete."""
        return self.layout.cache / "prepare" / f"{self.category}_{self.config.name}"


def croissant_path(layout: Layout, manifest: Mapping[str, Any]) -> Path:
    """Where a dataset's Croissant file lies: at the top, because its readers find files at and below its folder."""
    return layout.processed / manifest["category"] / f"{manifest['name']}_{manifest['version']}.croissant.json"


def overview_path(layout: Layout, manifest: Mapping[str, Any]) -> Path:
    """Where a dataset's overview page lies."""
    return layout.processed / manifest["category"] / f"{manifest['name']}_{manifest['version']}.overview.html"
