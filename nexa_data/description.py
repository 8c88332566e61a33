"""The manifest of a dataset: what it is made of, what each step did to its rows, and its files with their digests."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from nexa_core.config.data import DatasetConfig
from nexa_data import manifests
from nexa_data.engines import Means
from nexa_data.judge import DECONTAMINATE, NEAR_DUPLICATES
from nexa_data.listing import Census
from nexa_data.origin import Origin
from nexa_data.places import Places
from nexa_data.quality import step_names
from nexa_data.rejects import counts
from nexa_data.rows import SCHEMAS
from nexa_data.split import HELD_OUT
from nexa_data.tokens import make_sequences, make_tokenizer

LIBRARIES = ("jinja2", "numpy", "orjson", "py3langid", "pyarrow", "tokenizers")
"""Those that decide a dataset's bytes."""


@dataclass(frozen=True)
class Outcome:
    """What came of the rows of a source."""

    sources: list[dict[str, Any]]
    """As they were while the rows were read."""
    census: Census
    reasons: Mapping[str, Counter[str]]
    """Why rows were left out, by step."""
    num_rows: Mapping[str, int]
    """Of each split."""
    num_beside: Mapping[str, int]
    """Of each table beside the rows that there is."""


def describe(
    places: Places, origin: Origin, outcome: Outcome, means: Means, standing: list[manifests.Stood]
) -> dict[str, Any]:
    """The manifest of a dataset whose rows are written; encodes them where that is asked for.

    Reads each written file again for its digest.

    Args:
        standing: the datasets that it replaces.
    """
    config, layout, census = places.config, places.layout, outcome.census
    sources, evaluation_sets = outcome.sources, origin.evaluation_sets()
    resolved, code = config.resolved(), manifests.code_digest()
    beside = {"scores": places.scores, "overlaps": places.overlaps}
    num_rejects = sum(reasons.total() for reasons in outcome.reasons.values())
    splits = {
        split: manifests.describe_file(layout, places.split(split), rows=rows)
        for split, rows in outcome.num_rows.items()
    }
    training = [split for split in splits if split not in HELD_OUT]
    tokenizer = make_tokenizer(places, training, sources)
    manifest = {
        "format": manifests.FORMAT,
        "name": config.name,
        "version": config.version,
        "category": places.category,
        "kind": config.rows.name,
        "columns": [{"name": field.name, "type": str(field.type)} for field in SCHEMAS[config.rows.name]],
        "labels": sorted(census.labels),
        "feature_shape": census.feature_shape,
        "splits": splits,
        "sources": sources,
        "evaluation_sets": evaluation_sets,
        "steps": _steps(config, outcome),
        "rejects": manifests.describe_file(layout, places.rejects, rows=num_rejects),
        **{
            name: manifests.describe_file(layout, path, rows=outcome.num_beside[name])
            if name in outcome.num_beside
            else None
            for name, path in beside.items()
        },
        "template": origin.template and origin.template.as_json(),
        "tokenizer": tokenizer,
        "sequences": None,
        "parents": [],
        "config": resolved,
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "code": code,
        "fingerprint": manifests.fingerprint(resolved, sources + evaluation_sets, code),
    }
    return {**manifest, "sequences": make_sequences(places, manifest, means, standing)}


def _steps(config: DatasetConfig, outcome: Outcome) -> list[dict[str, Any]]:
    """What each step did to how many rows, and why it left rows out."""
    parameters: dict[str, Any] = {
        "read": config.source.resolved(),
        "normalise": config.rows.resolved(),
        **{name: step.resolved() for name, step in zip(step_names(config), config.quality, strict=True)},
        **({} if config.decontaminate is None else {DECONTAMINATE: config.decontaminate.resolved()}),
        "deduplicate": {"drop_duplicates": config.drop_duplicates},
        **({} if config.near_duplicates is None else {NEAR_DUPLICATES: config.near_duplicates.resolved()}),
        "split": config.output.resolved(),
    }
    steps, rows_in = [], outcome.census.num_read
    for name, settings in parameters.items():
        reasons = outcome.reasons.get(name, Counter())
        rows_out = rows_in - reasons.total()
        step = {"name": name, "parameters": settings, "rows_in": rows_in, "rows_out": rows_out}
        steps.append({**step, "reasons": counts(reasons)})
        rows_in = rows_out
    assert rows_in == outcome.census.num_kept, "a row was neither kept nor rejected"
    return steps
