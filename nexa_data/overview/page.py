"""The page itself: what was measured, told and drawn.

Rows, labels, file names and settings are other people's words: the template escapes each, and shows what is no character
of a text instead of obeying it. The page's own policy lets nothing run and nothing be fetched, should an escape be missing.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from nexa_core import durable
from nexa_core.config.data import About
from nexa_data.datasets import Dataset
from nexa_data.manifests import Manifest
from nexa_data.overview.examples import Row, example_rows, read_rejects
from nexa_data.overview.images import picture
from nexa_data.overview.plots import bar, length_plot, limits_of, score_plot, short
from nexa_data.overview.scores import Scores, read_scores
from nexa_data.overview.statistics import Lengths, Pixels, Statistics, measure, split_paths
from nexa_data.overview.tally import Tally, log_edges
from nexa_data.overview.token_counts import TokenCounts, count_tokens
from nexa_data.places import overview_path

QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "greatest": 1.0}
NUM_LABELS = 40
NUM_FILES = 12
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    (0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD
)
"""Signs for control characters, and for those that turn the direction of a text around."""
LEAST_SHARE = 0.004
"""Of a bar: what is there at all can be seen."""


def write_overview(dataset: Dataset, path: Path | None = None, *, is_sample: bool = False) -> Path:
    """Write a dataset's page, and say where it is.

    Args:
        is_sample: whether lengths, scores and features are measured of some rows instead of all.
    """
    path = path or overview_path(dataset.layout, dataset.manifest)
    durable.write_text(path, make_page(dataset, is_sample=is_sample))
    return path


def make_page(dataset: Dataset, *, is_sample: bool) -> str:
    """The page as HTML; the same for the same dataset."""
    found = measure(dataset, is_sample=is_sample)
    scores = read_scores(dataset, is_sample=is_sample)
    rejected = read_rejects(dataset, is_sample=is_sample)
    manifest = dataset.manifest
    rows = {split: sum(dataset.num_rows[file] for file in dataset.splits_of(split)) for split in split_paths(dataset)}
    return _template().render(
        dataset=dataset,
        manifest=manifest,
        about=About.model_validate(manifest.get("about") or {}),
        rows=rows,
        steps=_steps(manifest),
        num_read=manifest["steps"][0]["rows_in"],
        splits=_splits(dataset, rows),
        tokens=_tokens(count_tokens(dataset, is_sample=is_sample)),
        files=_files(dataset),
        num_bytes=sum(record["bytes"] for record in _records(dataset)),
        num_files=NUM_FILES,
        measured=found.num_measured,
        labels=_labels(found, rows),
        num_labels=len(found.labels),
        lengths=[_lengths(each) for each in found.lengths],
        turns=_turns(found),
        classes=_pictures(found.pixels, dataset.feature_shape),
        scores=_scores(scores),
        score_rows=0 if scores is None else scores.num_rows,
        constant={}
        if scores is None
        else {name.replace("_", " "): short(value) for name, value in scores.constant.items()},
        rejected=rejected,
        examples=example_rows(dataset),
        picture_of=lambda row: _picture(row, dataset.feature_shape),
        settings=json.dumps(manifest["config"], indent=2, ensure_ascii=False),
    )


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder,
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_count, size=_size, share=_share)
    return environment.get_template("page.html")


def _visible(value: Any) -> Any:
    return value.translate(VISIBLE) if type(value) is str else value


def _steps(manifest: Manifest) -> list[dict[str, Any]]:
    """Each step with a bar of the rows that it kept and left out, of all that were read."""
    whole = max(1, manifest["steps"][0]["rows_in"])
    steps = []
    for step in manifest["steps"]:
        removed = step["rows_in"] - step["rows_out"]
        share = max(LEAST_SHARE, removed / whole) if removed else 0.0
        kept = min(step["rows_out"] / whole, 1 - share)
        drawn = bar([("kept", kept), ("out", share)])
        steps.append({**step, "removed": removed, "bar": drawn, "of": removed / max(1, step["rows_in"])})
    return steps


def _splits(dataset: Dataset, rows: Mapping[str, int]) -> list[dict[str, Any]]:
    whole = sum(rows.values())
    return [
        {
            "name": split,
            "rows": count,
            "share": count / whole,
            "bar": bar([(split, max(LEAST_SHARE, count / whole))]),
            "bytes": sum(dataset.manifest["splits"][file]["bytes"] for file in dataset.splits_of(split)),
        }
        for split, count in rows.items()
    ]


def _files(dataset: Dataset) -> list[dict[str, Any]]:
    return [
        {"rows": None, **record, "name": "/".join(PurePosixPath(record["path"]).parts[-2:])}
        for record in _records(dataset)
    ]


def _records(dataset: Dataset) -> Iterator[Mapping[str, Any]]:
    """The manifest's record of each file that training reads: rows, token sequences, the tokenizer."""
    yield from dataset.manifest["splits"].values()
    yield from dataset.sequence_records.values()
    if dataset.manifest["tokenizer"] is not None:
        yield dataset.manifest["tokenizer"]


def _labels(found: Statistics, rows: Mapping[str, int]) -> list[dict[str, Any]]:
    """The commonest classes, each with its share in every split."""
    shares = {
        label: {split: count / max(1, rows[split]) for split, count in counts.items()}
        for label, counts in list(found.labels.items())[:NUM_LABELS]
    }
    top = max((share for each in shares.values() for share in each.values()), default=1.0)
    whole = sum(rows.values())
    return [
        {
            "name": label,
            "rows": sum(found.labels[label].values()),
            "share": sum(found.labels[label].values()) / whole,
            "splits": [
                {"name": split, "rows": found.labels[label][split], "share": share, "bar": bar([(split, share / top)])}
                for split, share in each.items()
            ],
        }
        for label, each in shares.items()
    ]


def _lengths(each: Lengths) -> dict[str, Any]:
    plots = [_length_plot(each.column, each.chars, "characters"), _length_plot(each.column, each.words, "words")]
    return {"name": each.column, "plots": plots}


def _tokens(counts: TokenCounts | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    return {
        "counts": counts,
        "short": counts.num_short / counts.num_sequences,
        "lengths": _length_plot("documents", {"train": counts.lengths}, "tokens"),
    }


def _turns(found: Statistics) -> dict[str, Any] | None:
    return _length_plot("conversations", found.turns, "messages") if found.turns else None


def _length_plot(column: str, tallies: Mapping[str, Tally], what: str) -> dict[str, Any]:
    edges = log_edges(list(tallies.values()))
    middles = ", ".join(f"{split} {tally.quantile(0.5):,}" for split, tally in tallies.items())
    drawn = length_plot(
        {split: tally.histogram(edges) for split, tally in tallies.items()},
        edges,
        what,
        f"{column}: share of rows by number of {what}. Medians: {middles}.",
    )
    quantiles = {
        split: [tally.quantile(share) for share in QUANTILES.values()] + [tally.mean]
        for split, tally in tallies.items()
    }
    return {"what": what, "drawn": drawn, "columns": [*QUANTILES, "mean"], "quantiles": quantiles}


def _scores(scores: Scores | None) -> list[dict[str, Any]]:
    shown = scores.shown if scores else ()
    return [
        {"step": score.step, "name": score.name, "limits": limits_of(score), "drawn": score_plot(score)}
        for score in shown
    ]


def _pictures(classes: tuple[Pixels, ...], shape: tuple[int, ...] | None) -> list[dict[str, Any]]:
    """Of each class the mean of its features."""
    drawn = [(each, picture(each.total / each.count, shape or ())) for each in classes]
    return [{"label": each.label, "count": each.count, "address": address} for each, address in drawn if address]


def _picture(row: Row, shape: tuple[int, ...] | None) -> str | None:
    return picture(np.array(row.features), shape or ())


def _count(number: float) -> str:
    return f"{number:,.1f}" if isinstance(number, float) else f"{number:,}"


def _size(size_bytes: float) -> str:
    power = min(4, int(math.log(max(1, size_bytes), 1024)))
    return f"{size_bytes / 1024**power:.{min(1, power)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _share(share: float) -> str:
    """A share in percent, with as many digits as tell it from nothing."""
    return "0%" if share == 0 else f"{share:.1%}" if share >= 0.001 else "below 0.1%"
