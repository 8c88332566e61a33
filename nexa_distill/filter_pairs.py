"""Filtering: of a teacher's answers the good ones become a student's training data, the others keep their reason."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.config.distill import DistillConfig
from nexa_core.config.distill_filter import FilterConfig, JudgeCheck, OwnCheck
from nexa_core.config.quality import CustomStep
from nexa_core.config.tokenizer import LoadedTokenizer
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_data import manifests
from nexa_data.quality.own import code_of
from nexa_data.rows import SCHEMAS
from nexa_data.tokens import write_tokenizer
from nexa_distill import outputs
from nexa_distill.checks import Pair
from nexa_distill.checks.judge import judge_template
from nexa_distill.checks.own import PREFIX
from nexa_distill.funnel import funnel_text
from nexa_distill.pair_tables import PairTables
from nexa_distill.places import Place, place_of, require_file
from nexa_distill.reviews import digest_of_reviews, read_reviews, reviews_path
from nexa_distill.sifting import DUPLICATES, REVIEW, STATUS, Sieve, open_answers, read_pairs
from nexa_distill.standing import FREE_KEYS, Made, Origin, still_stands
from nexa_llm.ask import Teachers, contents_of
from nexa_llm.prices import PICOUSD, as_usd
from nexa_llm.spent import Spent
from nexa_llm.store import store_path

logger = logging.getLogger(__name__)

FOLDER = "sft_datasets"
MAKE = "python -m nexa_distill.collect_teacher"


@dataclass(frozen=True)
class Filtered(Made):
    """Good pairs."""

    def as_text(self, layout: Layout) -> str:
        rows = {split: record["rows"] for split, record in self.manifest["splits"].items()}
        price = self.manifest["price_per_kept_pair_usd"]
        shown = ", ".join(f"{split} {number:,}" for split, number in rows.items())
        lines = [
            f"{self.manifest['name']}_{self.manifest['version']}: {sum(rows.values()):,} pairs kept ({shown}), "
            f"{self.manifest['rejected']['rows']:,} rejected{'' if self.is_new else ', unchanged'}",
            funnel_text(self.manifest["steps"]),
            "price per kept pair: "
            + ("not known" if price is None else f"${price:.8f}{_paid_text(self.manifest['paid'])}"),
            f"kept {self.manifest['filtered']['path']}; rejected {self.manifest['rejected']['path']}",
            f"to train on {self.manifest['splits']['train']['path']}; manifest {layout.relative(self.place.manifest_path)}",
        ]
        return "\n".join(lines)


def _paid_text(paid: Mapping[str, float]) -> str:
    unknown = f", ${paid['unknown_usd']:.6f} of it perhaps" * bool(paid["unknown_usd"])
    lost = f", ${paid['lost_usd']:.6f} of it for calls that brought no answer{unknown}" * bool(paid["lost_usd"])
    return f" (paid in all: ${paid['usd']:.6f}{lost})"


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
    if places.key in [source.key for source in sources]:
        raise UserError(
            f"{places.key} is the name of the answers; give the pairs another with filter.name, or with --dst."
        )
    origin, standing = _origin(settings, layout, sources), manifests.read_manifest(places.manifest)
    if standing is not None and still_stands(standing, origin, layout, replace=replace):
        return Filtered(places.place, standing, is_new=False)
    began = time.monotonic()
    manifest = _make(settings, layout, sources, places, origin)
    logger.info("%s: %.1f s", places.key, time.monotonic() - began)
    return Filtered(places.place, manifest, is_new=True)


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
    settings: FilterConfig, layout: Layout, sources: Sequence[Place], places: Places, origin: Origin
) -> dict[str, Any]:
    judging = f"judge of {places.place.purpose}"
    purposes = [judging, *(each for source in sources for each in (source.purpose, f"judge of {source.purpose}"))]
    with Spent(store_path(layout), purposes) as spent:
        with ExitStack() as held:
            sieve = Sieve(settings, layout, purpose=judging, spent=spent, teachers=Teachers(layout, held))
            cost = Cost(spent)
            tables = _sift(settings, layout, sources, places, sieve=sieve, cost=cost)
        manifest = _manifest(settings, layout, sources, places, origin, sieve=sieve, tables=tables, cost=cost)
    durable.write_json(places.manifest, manifest)
    return manifest


def _sift(
    settings: FilterConfig, layout: Layout, sources: Sequence[Place], places: Places, *, sieve: Sieve, cost: "Cost"
) -> PairTables:
    """What is kept and what is not, once the files have their names.

    Raises:
        GateError: no pair is kept; of all files only that of the rejected got its name.
    """
    with ExitStack() as told, contextlib.suppress(_NothingKept), ExitStack() as stack:
        tables = PairTables(
            stack,
            told,
            filtered=places.beside("filtered"),
            rejected=places.beside("rejected"),
            splits={split: places.split(split) for split in ("train", "val")[: 1 + (settings.val > 0)]},
            val=settings.val,
            salt=settings.salt,
        )
        with Progress("filtering", total=_num_rows(sources, settings.max_samples), unit="answers") as progress:
            for source in sources:
                reviews = read_reviews(reviews_path(layout, source.key)) if settings.use_reviews else {}
                for pairs in read_pairs(source.path, max_rows=settings.max_samples):
                    tables.add(sieve.sift(pairs, reviews))
                    cost.saw(pairs)
                    progress.update(tables.num_read, f"{tables.num_kept:,} kept")
        tables.close()
        durable.remove(places.manifest)  # of the dataset that is being replaced
        if not tables.num_kept:
            raise _NothingKept
    if not tables.num_kept:
        reasons = "; ".join(
            f"{stage.name}: {', '.join(f'{count:,}x {reason}' for reason, count in stage.reasons.most_common(3))}"
            for stage in sieve.stages.values()
            if stage.reasons
        )
        raise GateError(
            f"no pair is kept of {tables.num_read:,} answers ({reasons}). Each with its reason: "
            f"{layout.relative(places.beside('rejected'))}"
        )
    return tables


class _NothingKept(Exception):
    """Of all files only that of the rejected gets its name."""


class Cost:
    """What the answers cost, added up without rounding, and what was paid for them."""

    def __init__(self, spent: Spent) -> None:
        self.spent = spent
        self._picousd: int | None = None

    def saw(self, pairs: Sequence[Pair]) -> None:
        known = [(pair.row["request_sha256"], _picousd(pair.row["cost_usd"])) for pair in pairs]
        self.spent.saw(known)
        for _, picousd in known:
            if picousd is not None:
                self._picousd = (self._picousd or 0) + picousd

    @property
    def usd(self) -> float | None:
        """None where no answer says what it cost."""
        return None if self._picousd is None else as_usd(self._picousd)


def _picousd(usd: float | None) -> int | None:
    return None if usd is None else round(usd * PICOUSD)


def _num_rows(sources: Sequence[Place], at_most: int | None) -> int:
    number = 0
    for source in sources:
        with open_answers(source.path) as file:
            there = file.metadata.num_rows
        number += there if at_most is None else min(there, at_most)
    return number


def _manifest(
    settings: FilterConfig,
    layout: Layout,
    sources: Sequence[Place],
    places: Places,
    origin: Origin,
    *,
    sieve: Sieve,
    tables: PairTables,
    cost: Cost,
) -> dict[str, Any]:
    splits = {
        split: manifests.describe_file(layout, places.split(split), rows=rows)
        for split, rows in tables.num_rows.items()
    }
    tokenizer = None
    if settings.tokenizer is not None:
        files = [places.split("train")]
        tokenizer = write_tokenizer(settings.tokenizer, layout, places.beside("tokenizers"), files, key=places.key)
    files_read = [
        {"file": layout.relative(source.path), "sha256": sha256}
        for source, sha256 in zip(sources, origin.made_of["files"], strict=False)  # behind the answers there are others
    ]
    paid = cost.spent.total()
    return {
        "format": manifests.FORMAT,
        "name": places.place.name,
        "version": places.place.version,
        "category": "distillation",
        "kind": "pairs",
        "columns": [{"name": field.name, "type": str(field.type)} for field in SCHEMAS["pairs"]],
        "labels": [],
        "feature_shape": None,
        "splits": splits,
        "sources": files_read,
        "steps": _steps(sieve, settings),
        "accepted_by_people": sieve.num_rescued,
        "filtered": manifests.describe_file(layout, places.beside("filtered"), rows=tables.num_kept),
        "rejected": manifests.describe_file(layout, places.beside("rejected"), rows=tables.num_rejected),
        "tokenizer": tokenizer,
        "sequences": None,
        "parents": [_parent(source, file) for source, file in zip(sources, files_read, strict=True)],
        "config": {**settings.resolved(), "output": {"name": FOLDER}},
        "cost_usd": cost.usd,
        "judge_cost_usd": sieve.judge_cost_usd,
        "paid": None if paid is None else paid.as_json(),
        "price_per_kept_pair_usd": None if paid is None else as_usd(paid.picousd) / tables.num_kept,
        "code": digests.of_code(),
        "contents": origin.contents,
        "fingerprint": origin.fingerprint,
    }


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


def _origin(settings: FilterConfig, layout: Layout, sources: Sequence[Place]) -> Origin:
    deciding = {name: value for name, value in settings.resolved().items() if name not in FREE_KEYS}
    files = [source.path for source in sources]
    if isinstance(settings.tokenizer, LoadedTokenizer):
        files.append(layout.find(settings.tokenizer.path))
    made_of = {
        "config": deciding,
        "files": [digests.of_file(path) if path.is_file() else None for path in files],
        "reviews": [digest_of_reviews(reviews_path(layout, source.key)) for source in sources] * settings.use_reviews,
        **named_by(settings, layout),
    }
    return Origin(
        made_of,
        section="filter",
        kind="pairs",
        others="answers, reviews, templates or functions of yours",
        contents=contents_of_judges(settings, layout),
    )


def named_by(settings: FilterConfig, layout: Layout) -> dict[str, list[str]]:
    """Digests of the templates and of the user's own functions that steps name."""
    judges = [step for step in settings.steps if isinstance(step, JudgeCheck)]
    own = [step.name.removeprefix(PREFIX) for step in settings.steps if isinstance(step, OwnCheck | CustomStep)]
    return {
        "templates": [digests.of_bytes(judge_template(judge, layout).encode()) for judge in judges],
        "own_code": [code_of(name) for name in own],
    }


def contents_of_judges(settings: FilterConfig, layout: Layout) -> dict[str, str]:
    """What the settings only name of those that judge."""
    judges = [step for step in settings.steps if isinstance(step, JudgeCheck)]
    return {
        f"judge{number}'s {name}": digest
        for number, judge in zip(("", *map(str, range(2, len(judges) + 1))), judges, strict=False)
        for name, digest in contents_of(judge.ask, layout).items()
    }


def _parent(source: Place, file: dict[str, Any]) -> dict[str, Any]:
    manifest = manifests.read_manifest(source.manifest_path) or {}
    return {"dataset": source.key, "fingerprint": manifest.get("fingerprint"), **file}


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("filter-pairs")
