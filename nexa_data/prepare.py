"""Preparing: from raw rows to a versioned dataset whose manifest is written last."""

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core import durable
from nexa_core.config.data import DataConfig, DatasetConfig
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data import manifests
from nexa_data.description import Outcome, describe
from nexa_data.engines import Means
from nexa_data.flow import Beside, fill
from nexa_data.listing import Census
from nexa_data.near_rows import NO_NEAR_ROWS, find_near_rows
from nexa_data.origin import Origin, open_origin
from nexa_data.overlaps import OverlapTable
from nexa_data.parts import Part, collector_paused, in_use, make_parts
from nexa_data.places import Places
from nexa_data.publish import name_in_evaluation_sets, publish, withdraw
from nexa_data.quality.scores import ScoreTable
from nexa_data.rejects import Rejects, rejects_at
from nexa_data.replacing import kept_until_replaced, restore
from nexa_data.rows import SCHEMAS, check_columns
from nexa_data.sources.raw import UNREADABLE
from nexa_data.split import HELD_OUT
from nexa_data.tables import Tables

logger = logging.getLogger(__name__)

NUM_SPLITS_SHOWN = 3
DEFAULT_MEANS = Means()


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
        return int(self.manifest["rejects"]["rows"])


def prepare(config: DataConfig, layout: Layout, *, replace: bool = False) -> list[Prepared]:
    """Make each dataset of `config` that does not stand yet, in order; a dataset that stands unchanged is left alone.

    Args:
        replace: whether a dataset of the same name and version, made of something else, may be replaced.

    Raises:
        UserError: a dataset of that name and version was made of something else, or the settings do not fit the source.
        GateError: too many rows are bad, or none are left to train on; the rejects file says which and why.
    """
    means = Means(config.engine, config.memory_limit_bytes)
    return [prepare_dataset(dataset, layout, means=means, replace=replace) for dataset in config.datasets]


def prepare_dataset(
    config: DatasetConfig, layout: Layout, *, means: Means = DEFAULT_MEANS, replace: bool = False
) -> Prepared:
    """`prepare` for one dataset."""
    places = Places(layout, config)
    origin = open_origin(places)
    restore(places)
    standing = manifests.read_manifest(places.manifest)
    if standing is not None and _still_stands(standing, places, origin, replace=replace):
        name_in_evaluation_sets(origin.evaluation, places, standing)
        return Prepared(places.manifest, publish(places, standing), is_new=False)
    others = _owners_of_shards(places)
    if others and not replace:
        names = ", ".join(path.stem for path, _ in others)
        folder = layout.relative(places.shard("001").parent)
        raise UserError(f"{config.key}: {folder} holds the shards of {names}. Pass --replace to give them up.")
    own = [] if standing is None else [(places.manifest, standing)]
    return _make(places, origin, own + others, means)


def _still_stands(standing: manifests.Manifest, places: Places, origin: Origin, *, replace: bool) -> bool:
    """Whether the dataset that exists is the one that is asked for, whole, so that there is nothing to do."""
    key, origins, config = places.config.key, origin.sources() + origin.evaluation_sets(), places.config.resolved()
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
    if is_same_code:
        logger.info("%s: nothing to do, it stands as asked", key)
    else:
        logger.warning("%s: it stands as another state of the code made it; --replace makes it anew", key)
    return True


def _owners_of_shards(places: Places) -> list[manifests.Stood]:
    """The other datasets whose pretraining shards have the names that this one's will have."""
    if places.config.output.name != "pretrain":
        return []
    return [
        (path, manifest)
        for path, manifest in manifests.list_manifests(places.layout, places.category)
        if manifests.is_pretrain(manifest) and path != places.manifest
    ]


def _make(places: Places, origin: Origin, standing: list[manifests.Stood], means: Means) -> Prepared:
    """Make the dataset, in the place of those that stand, which are lost only when it is whole."""
    began = time.monotonic()
    with kept_until_replaced(places, standing):
        prepared = _write(places, origin, standing, means)
    name_in_evaluation_sets(origin.evaluation, places, prepared.manifest)
    _report(prepared, time.monotonic() - began)
    return prepared


def _write(places: Places, origin: Origin, standing: list[manifests.Stood], means: Means) -> Prepared:
    config, layout = places.config, places.layout
    origin.tokenizers()  # before there is work to lose
    rejects_path = places.refused_rejects if places.manifest.exists() else places.rejects
    with rejects_at(rejects_path, config.key) as rejects, ExitStack() as stack, collector_paused():
        tables = Tables(stack, SCHEMAS[config.rows.name], places.split)
        next(check_columns(origin.source.rows(), config.rows, origin.template), None)
        beside = Beside(
            ScoreTable(stack, places.scores, config) if config.quality else None,
            OverlapTable(stack, places.overlaps, config) if origin.evaluation is not None else None,
        )
        origin.source.begin_digests()
        census = _fill(tables, rejects, places, origin, beside, means)
        num_beside = beside.close()
        sources = origin.sources()  # refuses a file that has changed meanwhile
        rejects.check(census.num_read, config.max_bad_fraction)
        tables.close()
        has_training = any(rows for split, rows in tables.num_rows.items() if split not in HELD_OUT)
        if not has_training and getattr(config.output, "test", None) != 1:
            raise GateError(f"the training split is empty: of {census.num_kept} rows none fell into it.")
        withdraw(places, standing)
    if rejects_path != places.rejects:
        durable.copy(rejects_path, places.rejects)
    durable.remove(places.refused_rejects)
    manifest = describe(
        places, origin, Outcome(sources, census, rejects.reasons, tables.num_rows, num_beside), means, standing
    )
    _remove_left_over(layout, standing, manifest)
    return Prepared(places.manifest, publish(places, manifest), is_new=True)


def _fill(tables: Tables, rejects: Rejects, places: Places, origin: Origin, beside: Beside, means: Means) -> Census:
    """Read the source, twice where near duplicates are to be found first."""
    config, near = places.config, NO_NEAR_ROWS
    if origin.evaluation is not None and (too_short := origin.evaluation.index().too_short):
        logger.info(
            "%s: %s evaluation texts are too short to be looked for inside others (decontaminate.min_ngram_words), such as %s; "
            "rows that are the same as a whole are found",
            config.key, f"{len(too_short):,}", too_short[0],
        )  # fmt: skip
    looks_twice = config.near_duplicates is not None
    with in_use(places.parts) as used:
        parts: Iterable[Part] = make_parts(
            origin.source, config, places.parts, means=means,
            evaluation=origin.evaluation, template=origin.template, again=looks_twice, used=used,
        )  # fmt: skip
        if looks_twice:
            parts = list(parts)
            near = find_near_rows(parts, config)
        return fill(tables, rejects, parts, config, beside=beside, near=near)


def _remove_left_over(layout: Layout, standing: list[manifests.Stood], manifest: manifests.Manifest) -> None:
    """Delete what the replaced datasets had and the new one has not, such as further shards."""
    needed = {record["path"] for record in manifests.files_of(manifest)}
    for _, old in standing:
        for record in manifests.files_of(old):
            path = layout.absolute(record["path"])
            if record["path"] not in needed and path.resolve().is_relative_to(layout.processed.resolve()):
                durable.remove(path)


def _report(prepared: Prepared, seconds: float) -> None:
    shown, rejected = _shown(prepared.num_rows), prepared.num_rejected
    logger.info("%s: %s, %s rejected, %.1f s", prepared.key, shown, f"{rejected:,}", seconds)
    shares = prepared.manifest["config"]["output"]
    for split, count in prepared.num_rows.items():
        if count == 0 and shares.get(split) != 0:
            logger.warning("%s: there are too few rows for the split %s, it has none", prepared.key, split)
    num_unreadable = prepared.manifest["steps"][0]["reasons"].get(UNREADABLE, 0)
    if num_unreadable:
        where = prepared.manifest["rejects"]["path"]
        logger.warning(
            "%s: %s files could not be read, or not to their end; see %s", prepared.key, num_unreadable, where
        )


def _shown(num_rows: Mapping[str, int]) -> str:
    splits = ", ".join(f"{split} {count:,}" for split, count in list(num_rows.items())[:NUM_SPLITS_SHOWN])
    more = ", ..." if len(num_rows) > NUM_SPLITS_SHOWN else ""
    return f"{sum(num_rows.values()):,} rows ({splits}{more})"


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("prepare")
