"""Filtering: of a teacher's answers the good ones become a student's training data, the others keep their reason."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from nexa_core import digests, durable
from nexa_core.config.data import LoadedTokenizer, TrainingOutput
from nexa_core.config.distill import DistillConfig
from nexa_core.config.distill_filter import FilterConfig
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_data import manifests
from nexa_data.identity import content_id
from nexa_data.rows import SCHEMAS
from nexa_data.split import SPLITS, positions_of, splits_of
from nexa_data.tables import Table
from nexa_data.tokens import write_tokenizer
from nexa_distill import outputs
from nexa_distill.checks import Pair
from nexa_distill.funnel import funnel_text
from nexa_distill.places import Place, place_of, require_file
from nexa_distill.reviews import digest_of_reviews, read_reviews, reviews_path
from nexa_distill.sifting import DUPLICATES, REVIEW, STATUS, Sieve, Sifted, read_pairs

logger = logging.getLogger(__name__)

FOLDER = "sft_datasets"
FREE_KEYS = ("name", "version")
REJECTED_SCHEMA = pyarrow.schema(
    [*outputs.FIELDS, ("step", pyarrow.string()), ("reason", pyarrow.string()), ("detail", pyarrow.string())]
)
MAKE = "python -m nexa_distill.collect_teacher"


@dataclass(frozen=True)
class Filtered:
    """A dataset of good pairs that stands; `is_new` says whether this call made it."""

    manifest_path: Path
    manifest: Mapping[str, Any]
    is_new: bool

    def as_json(self) -> dict[str, Any]:
        return dict(self.manifest)

    def as_text(self, layout: Layout) -> str:
        rows = {split: record["rows"] for split, record in self.manifest["splits"].items()}
        price = self.manifest["price_per_kept_pair_usd"]
        shown = ", ".join(f"{split} {number:,}" for split, number in rows.items())
        lines = [
            f"{self.manifest['name']}_{self.manifest['version']}: {sum(rows.values()):,} pairs kept ({shown}), "
            f"{self.manifest['rejected']['rows']:,} rejected{'' if self.is_new else ', unchanged'}",
            funnel_text(self.manifest["steps"]),
            "price per kept pair: " + ("not known" if price is None else f"${price:.8f}"),
            f"kept {self.manifest['filtered']['path']}; rejected {self.manifest['rejected']['path']}",
            f"to train on {self.manifest['splits']['train']['path']}; manifest {layout.relative(self.manifest_path)}",
        ]
        return "\n".join(lines)


def filter_pairs(
    config: DistillConfig, layout: Layout, *, destination: str | None = None, replace: bool = False
) -> Filtered:
    """Put a teacher's answers through the steps, and write those that are kept and those that are not.

    The same answers, settings and reviews give the same bytes; nothing is visible before all is whole.

    Args:
        destination: a dataset's key, in place of the settings' name and version.
        replace: whether a dataset of the same name and version, made of something else, may be replaced.

    Raises:
        UserError: the answers are not there, the settings don't fit, or a dataset of that name was made of something else.
        GateError: no pair is kept.
    """
    settings = config.filter
    sources = [place_of(layout, each, outputs.FOLDER) for each in settings.outputs or (config.collect.key,)]
    for source in sources:
        require_file(layout, source, outputs.FOLDER, make=MAKE)
    places = Places(layout, place_of(layout, destination or settings.key, FOLDER))
    made_of = _made_of(settings, layout, sources)
    standing = manifests.read_manifest(places.manifest)
    if standing is not None and _still_stands(standing, made_of, layout, replace=replace):
        return Filtered(places.manifest, standing, is_new=False)
    began = time.monotonic()
    manifest = _make(settings, layout, sources, places, made_of)
    logger.info("%s: %.1f s", places.key, time.monotonic() - began)
    return Filtered(places.manifest, manifest, is_new=True)


@dataclass(frozen=True)
class Places:
    """The paths of one dataset of pairs."""

    layout: Layout
    place: Place

    @property
    def key(self) -> str:
        return self.place.key

    @property
    def manifest(self) -> Path:
        return self.place.manifest_path

    def split(self, split: str) -> Path:
        return self.place.path if split == "train" else self.place.path.with_suffix(f".{split}.parquet")

    def beside(self, folder: str) -> Path:
        """The file of `filtered`, `rejected` or `tokenizers`."""
        suffix = ".json" if folder == "tokenizers" else ".parquet"
        return self.layout.processed / "distillation" / folder / f"{self.key}{suffix}"


def _make(
    settings: FilterConfig, layout: Layout, sources: Sequence[Place], places: Places, made_of: dict[str, Any]
) -> dict[str, Any]:
    sieve = Sieve(settings, layout)
    costs: list[float | None] = []
    with ExitStack() as told, contextlib.suppress(_NothingKept), ExitStack() as stack:
        writer = _Writer(stack, told, places, settings)
        with Progress("filtering", total=None, unit="answers") as progress:
            for source, path in [(source, source.path) for source in sources]:
                reviews = read_reviews(reviews_path(layout, source.key)) if settings.use_reviews else {}
                left = None if settings.max_samples is None else settings.max_samples - writer.num_read
                for pairs in read_pairs([path], max_rows=left):
                    writer.add(sieve.sift(pairs, reviews))
                    costs += [pair.row["cost_usd"] for pair in pairs]
                    progress.update(writer.num_read, f"{writer.num_kept:,} kept")
        writer.close()
        durable.remove(places.manifest)  # of the dataset that is being replaced
        if not writer.num_kept:
            raise _NothingKept
    if not writer.num_kept:
        reasons = "; ".join(f"{stage.name}: {dict(stage.reasons)}" for stage in sieve.stages.values() if stage.reasons)
        raise GateError(
            f"no pair is kept of {writer.num_read:,} answers ({reasons}). Each with its reason: "
            f"{layout.relative(places.beside('rejected'))}"
        )
    splits = {
        split: manifests.describe_file(layout, places.split(split), rows=rows)
        for split, rows in writer.num_rows.items()
    }
    tokenizer = None
    if settings.tokenizer is not None:
        files = [places.split("train")]
        tokenizer = write_tokenizer(settings.tokenizer, layout, places.beside("tokenizers"), files, key=places.key)
    known = [cost for cost in costs if cost is not None]
    manifest = {
        "format": manifests.FORMAT,
        "name": places.place.name,
        "version": places.place.version,
        "category": "distillation",
        "kind": "pairs",
        "columns": [{"name": field.name, "type": str(field.type)} for field in SCHEMAS["pairs"]],
        "labels": [],
        "feature_shape": None,
        "splits": splits,
        "sources": [_source(layout, source) for source in sources],
        "steps": _steps(sieve, settings),
        "accepted_by_people": sieve.num_rescued,
        "filtered": manifests.describe_file(layout, places.beside("filtered"), rows=writer.num_kept),
        "rejected": manifests.describe_file(layout, places.beside("rejected"), rows=writer.num_rejected),
        "tokenizer": tokenizer,
        "sequences": None,
        "parents": [_parent(layout, source) for source in sources],
        "config": {**settings.resolved(), "output": {"name": FOLDER}},
        "cost_usd": sum(known) if known else None,
        "price_per_kept_pair_usd": sum(known) / writer.num_kept if known else None,
        "code": digests.of_code(),
        "fingerprint": digests.of_value(made_of),
    }
    durable.write_json(places.manifest, manifest)
    return manifest


class _NothingKept(Exception):
    """Of all files only that of the rejected gets its name."""


class _Writer:
    """The files in the making; they get their names when `stack`, and `told` for the rejected, are closed without an error."""

    def __init__(self, stack: ExitStack, told: ExitStack, places: Places, settings: FilterConfig):
        def table(path: Path, schema: pyarrow.Schema, stack: ExitStack = stack) -> Table:
            made = Table(stack.enter_context(durable.create(path)), schema)
            stack.callback(made.abandon)
            return made

        self._filtered = table(places.beside("filtered"), outputs.SCHEMA)
        self._rejected = table(places.beside("rejected"), REJECTED_SCHEMA, told)
        self._splits = {"train": table(places.split("train"), SCHEMAS["pairs"])}
        if settings.val:
            self._splits["val"] = table(places.split("val"), SCHEMAS["pairs"])
        self._settings = settings
        self._output = TrainingOutput(name="training", val=settings.val, test=0.0)
        self.num_read = 0

    @property
    def num_kept(self) -> int:
        return self._filtered.num_rows

    @property
    def num_rejected(self) -> int:
        return self._rejected.num_rows

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: table.num_rows for split, table in self._splits.items()}

    def add(self, outcome: Sequence[Sifted]) -> None:
        self.num_read += len(outcome)
        kept = [sifted.pair for sifted in outcome if sifted.step is None]
        rejected = [
            {
                **sifted.pair.row,
                "step": sifted.step,
                "reason": sifted.rejection.reason,
                "detail": sifted.rejection.detail,
            }
            for sifted in outcome
            if sifted.rejection is not None
        ]
        _add(self._filtered, [dict(pair.row) for pair in kept], outputs.SCHEMA)
        _add(self._rejected, rejected, REJECTED_SCHEMA)
        positions = positions_of([pair.prompt.encode() for pair in kept], self._settings.salt)
        numbers = splits_of(positions, self._output)
        for number, split in enumerate(SPLITS):
            rows = [_sft_row(pair) for pair, each in zip(kept, numbers, strict=True) if each == number]
            if rows:
                _add(self._splits[split], rows, SCHEMAS["pairs"])

    def close(self) -> None:
        for table in (self._filtered, self._rejected, *self._splits.values()):
            table.close()


def _add(table: Table, rows: list[dict[str, Any]], schema: pyarrow.Schema) -> None:
    if rows:
        sizes = np.array([outputs.size_of(row) for row in rows])
        table.add(pyarrow.Table.from_pylist(rows, schema=schema), sizes)


def _sft_row(pair: Pair) -> dict[str, Any]:
    """A canonical row to train on, which names the answer that it is."""
    row = pair.row
    columns = {"prompt": pair.prompt, "completion": pair.completion}
    about = {"teacher_row": row["row_id"], "sample_index": row["sample_index"], "request_sha256": row["request_sha256"]}
    extra = digests.canonical_json({**pair.extra, **about}).decode()
    return {"row_id": content_id(columns)[0], **columns, "extra_json": extra}


def _steps(sieve: Sieve, settings: FilterConfig) -> list[dict[str, Any]]:
    parameters: dict[str, Any] = {
        STATUS: {"keep_truncated": settings.keep_truncated},
        REVIEW: {"use_reviews": settings.use_reviews},
        DUPLICATES: {},
    }
    own = iter(settings.steps)
    return [
        stage.as_json(parameters[name] if name in parameters else next(own).resolved())
        for name, stage in sieve.stages.items()
    ]


def _made_of(settings: FilterConfig, layout: Layout, sources: Sequence[Place]) -> dict[str, Any]:
    """Everything that decides the bytes."""
    deciding = {name: value for name, value in settings.resolved().items() if name not in FREE_KEYS}
    files = [source.path for source in sources]
    if isinstance(settings.tokenizer, LoadedTokenizer):
        files.append(layout.find(settings.tokenizer.path))
    for step in settings.steps:
        if (template := getattr(step, "template", None)) is not None:
            files.append(layout.absolute(template))
    return {
        "config": deciding,
        "files": [digests.of_file(path) if path.is_file() else None for path in files],
        "reviews": [digest_of_reviews(reviews_path(layout, source.key)) for source in sources] * settings.use_reviews,
    }


def _still_stands(standing: manifests.Manifest, made_of: dict[str, Any], layout: Layout, *, replace: bool) -> bool:
    key = f"{standing['name']}_{standing['version']}"
    if standing["fingerprint"] != digests.of_value(made_of):
        if replace:
            return False
        then = {name: value for name, value in standing["config"].items() if name not in (*FREE_KEYS, "output")}
        changed = [name for name in made_of["config"] if then.get(name) != made_of["config"][name]]
        raise UserError(
            f"{key} was filtered from something else ({', '.join(changed) or 'other answers or reviews'}). A version never "
            "changes: set a new filter.version, or pass --replace."
        )
    for record in manifests.files_of(standing):
        if problem := manifests.damage(layout, record):
            logger.warning("%s: %s; making it again", key, problem)
            return False
    logger.info("%s: nothing to do, it stands as asked", key)
    return True


def _source(layout: Layout, source: Place) -> dict[str, Any]:
    return {"file": layout.relative(source.path), "sha256": digests.of_file(source.path)}


def _parent(layout: Layout, source: Place) -> dict[str, Any]:
    manifest = manifests.read_manifest(source.manifest_path) or {}
    return {"dataset": source.key, "fingerprint": manifest.get("fingerprint"), **_source(layout, source)}


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("filter-pairs")
