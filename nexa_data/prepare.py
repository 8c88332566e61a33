"""Preparing: from raw rows to a versioned dataset whose manifest is written last."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core.config.data import DataConfig, DatasetConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data import manifests
from nexa_data.places import Places
from nexa_data.rejects import rejects_at
from nexa_data.sources import Source, open_source

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Prepared:
    """A dataset that stands; `is_new` says whether this call made it."""

    manifest_path: Path
    manifest: Mapping[str, Any]
    is_new: bool

    @property
    def key(self) -> str:
        return f"{self.manifest['name']}_{self.manifest['version']}"

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: record["rows"] for split, record in self.manifest["splits"].items()}

    @property
    def num_rejected(self) -> int:
        rows: int = self.manifest["rejects"]["rows"]
        return rows


def prepare(config: DataConfig, layout: Layout, *, replace: bool = False) -> list[Prepared]:
    """Make each dataset of `config` that does not stand yet, in order; a dataset that stands unchanged is left alone.

    Args:
        replace: whether a dataset of the same name and version, made of something else, may be replaced.

    Raises:
        UserError: a dataset of that name and version was made of something else, or the settings do not fit the source.
        GateError: too many rows are bad, or none are left to train on; the rejects file says which and why.
    """
    return [prepare_dataset(dataset, layout, replace=replace) for dataset in config.datasets]


def prepare_dataset(config: DatasetConfig, layout: Layout, *, replace: bool = False) -> Prepared:
    """`prepare` for one dataset."""
    places = Places(layout, config)
    source = open_source(config.source, layout)
    standing = manifests.read_manifest(places.manifest)
    if standing is not None and _still_stands(standing, places, source, replace=replace):
        return Prepared(places.manifest, standing, is_new=False)
    in_the_way = _shards_in_the_way(places)
    if in_the_way and not replace:
        raise UserError(
            f"{config.key}: data/processed/training/pretrain holds the shards of {', '.join(path.stem for path, _ in in_the_way)}. "
            "Pass --replace to give them up."
        )
    return _Making(places, source, in_the_way).make()


def _still_stands(standing: manifests.Manifest, places: Places, source: Source, *, replace: bool) -> bool:
    """Whether the dataset that exists is the one that is asked for, whole, so that there is nothing to do."""
    key, origins, config = places.config.key, source.origins(), places.config.resolved()
    if changed := manifests.differences(standing, config, origins):
        if replace:
            return False
        raise UserError(
            f"{key} was prepared from something else: {'; '.join(changed)}. A version never changes: "
            "set a new `version:`, or pass --replace to make it anew."
        )
    is_same_code = standing["fingerprint"] == manifests.fingerprint(config, origins, manifests.code_digest())
    if not is_same_code and replace:
        return False
    for record in manifests.files_of(standing):
        if problem := manifests.damage(places.layout, record):
            logger.warning("%s: %s; making the dataset again", key, problem)
            return False
    note = "" if is_same_code else " (made by another state of the code; --replace makes it anew)"
    logger.info("%s: nothing to do, it stands as asked%s", key, note)
    return True


def _shards_in_the_way(places: Places) -> list[tuple[Path, manifests.Manifest]]:
    """The other datasets whose pretraining shards have the names that this one's will have."""
    if places.config.output.name != "pretrain":
        return []
    others = manifests.list_manifests(places.layout)
    return [
        (path, manifest)
        for path, manifest in others
        if manifest["config"]["output"]["name"] == "pretrain" and path != places.manifest
    ]


class _Making:
    """One dataset in the making: rows flow through `_good_rows` and `_distinct` into tables, and are counted on the way."""

    def __init__(self, places: Places, source: Source, in_the_way: list[tuple[Path, manifests.Manifest]]):
        self._places, self._config, self._layout = places, places.config, places.layout
        self._source = source
        self._standing = [*in_the_way]
        self._num_read = 0
        self._seen: Counter[str] = Counter()
        self._labels: set[str] = set()
        self._num_features: int | None = None
        if (manifest := manifests.read_manifest(places.manifest)) is not None:
            self._standing.append((places.manifest, manifest))

    def make(self) -> Prepared:
        began = time.monotonic()
        origins = self._source.origins() if self._standing else None
        is_replacing = self._places.manifest.exists()
        rejects_path = self._places.refused_rejects if is_replacing else self._places.rejects
        with rejects_at(rejects_path) as rejects:
            num_rows = self._write_splits(rejects)
        raise NotImplementedError
