"""What each step of a dataset left out, and what it would with other limits: told from the scores that are kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet as parquet

from nexa_core.config.data import DatasetConfig
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.errors import UserError
from nexa_data.batches import score_name
from nexa_data.datasets import Dataset
from nexa_data.judge import DECONTAMINATE, NEAR_DUPLICATES, REPEATS
from nexa_data.quality import open_step, step_names

Place = tuple[str, int]
"""File and line of a row."""

MAX_EXAMPLE_CHARS = 160
NO_NEAR_DUPLICATES = "near duplicates are not counted here: which rows are near ones depends on those that are left"


@dataclass(frozen=True)
class Example:
    file: str
    line: int | None
    text: str


@dataclass(frozen=True)
class Stage:
    """One step of the funnel."""

    name: str
    rows_in: int
    rows_out: int
    reasons: Mapping[str, int]
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Funnel:
    dataset: str
    changed: tuple[str, ...]
    """The limits that differ from those that the dataset was made with; the rows on disk are still those."""
    stages: tuple[Stage, ...]
    note: str = ""
    """What cannot be told of these limits."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        head = f"{self.dataset}" + (f", if it were made with {', '.join(self.changed)}" if self.changed else "")
        lines = [head, f"  {'step':<16} {'rows in':>12} {'left out':>12} {'share':>8}"]
        for stage in self.stages:
            removed = stage.rows_in - stage.rows_out
            share = removed / stage.rows_in if stage.rows_in else 0.0
            lines.append(f"  {stage.name:<16} {stage.rows_in:>12,} {removed:>12,} {share:>8.2%}")
            lines += [f"    {count:>12,}x {reason}" for reason, count in stage.reasons.items()]
            lines += [f"      {each.file}:{each.line}: {each.text}" for each in stage.examples]
        lines += [f"  {self.note}"] if self.note else []
        return "\n".join(lines)


def show_funnel(dataset: Dataset, *, overrides: Sequence[str] = (), num_examples: int = 2) -> Funnel:
    """The steps of a dataset with what each of them left out.

    Args:
        overrides: limits to try instead, e.g. ``quality.0.min_words=5``. Rows are judged by the scores that are kept.
        num_examples: rows to show of each quality step.

    Raises:
        UserError: an override changes more than limits, or the dataset has no scores to try it on.
    """
    manifest = dataset.manifest
    if not manifest["config"].get("quality"):
        if overrides:
            raise UserError(f"{dataset.key} has no quality steps whose limits could be changed.")
        return Funnel(dataset.key, (), tuple(_recorded(step) for step in manifest["steps"]))
    config = _with_overrides(dataset, overrides)
    scores = _read_scores(dataset)
    before = [_recorded(step) for step in manifest["steps"] if step["name"] in ("read", "normalise")]
    stages, is_kept = _judge(dataset, config, scores, num_examples)
    if config.decontaminate is not None:
        stages.append(_decontaminated(dataset, config, scores, is_kept))
    is_first = _first_of_each(scores["row_id"], is_kept) if config.drop_duplicates else is_kept
    num_kept, num_distinct = int(is_kept.sum()), int((is_kept & is_first).sum())
    repeated = {"duplicate": num_kept - num_distinct} if num_kept > num_distinct else {}
    stages.append(Stage("deduplicate", num_kept, num_distinct, repeated))
    if overrides and config.near_duplicates is not None:
        return Funnel(dataset.key, tuple(overrides), (*before, *stages), NO_NEAR_DUPLICATES)
    after = [_recorded(step) for step in manifest["steps"] if step["name"] == NEAR_DUPLICATES]
    return Funnel(dataset.key, tuple(overrides), (*before, *stages, *after))


def _recorded(step: Mapping[str, Any]) -> Stage:
    return Stage(step["name"], step["rows_in"], step["rows_out"], step["reasons"])


def _with_overrides(dataset: Dataset, overrides: Sequence[str]) -> DatasetConfig:
    """The dataset's settings with other limits."""
    recorded = dataset.manifest["config"]
    made = DatasetConfig.model_validate_json(json.dumps(recorded))
    document = Document(json.loads(json.dumps(recorded)), {}, dataset.key)
    for override in overrides:
        document.override(override)
    asked = parse_config(document, DatasetConfig)
    same = made.model_copy(update={"quality": asked.quality}) == asked
    measured = [[step.measures() for step in each.quality] for each in (made, asked)]
    if not same or measured[0] != measured[1]:
        raise UserError(
            f"{', '.join(overrides)}: only limits can be tried on the scores of {dataset.key}; what is measured is decided when "
            "it is prepared. Change it in the config and prepare another version."
        )
    return asked


def _read_scores(dataset: Dataset) -> pyarrow.Table:
    return parquet.read_table(dataset.check_file("scores"))


def _judge(
    dataset: Dataset, config: DatasetConfig, scores: pyarrow.Table, num_examples: int
) -> tuple[list[Stage], np.ndarray]:
    """The stage of each quality step, and which rows pass all of them."""
    is_kept = np.ones(len(scores), dtype=bool)
    stages, shown = list[Stage](), list[list[dict[str, Any]]]()
    for index, (name, settings) in enumerate(zip(step_names(config), config.quality, strict=True)):
        step = open_step(settings)
        reasons = step.reasons({each: scores[score_name(index, each)].to_numpy() for each in step.names})
        removed = is_kept & (reasons != "")
        found, counts = np.unique(reasons[removed], return_counts=True)
        order = sorted(zip(counts.tolist(), found.tolist(), strict=True), key=lambda each: (-each[0], each[1]))
        shown.append(scores.take(np.flatnonzero(removed)[:num_examples]).to_pylist())
        rows_in = int(is_kept.sum())
        is_kept &= ~removed
        stages.append(Stage(name, rows_in, int(is_kept.sum()), {reason: count for count, reason in order}))
    texts = _beginnings(dataset, [row for rows in shown for row in rows])
    examples = [
        tuple(Example(row["file"], row["line"], texts[row["file"], row["line"]]) for row in rows) for rows in shown
    ]
    return [replace(stage, examples=each) for stage, each in zip(stages, examples, strict=True)], is_kept


def _decontaminated(dataset: Dataset, config: DatasetConfig, scores: pyarrow.Table, is_kept: np.ndarray) -> Stage:
    """The stage of the rows that repeat evaluation texts; takes those that it leaves out from `is_kept`."""
    assert config.decontaminate is not None
    rows_in = int(is_kept.sum())
    if config.decontaminate.action == "remove":
        path = dataset.check_file("overlaps")
        overlaps = parquet.read_table(path, columns=["row_id"])["row_id"].combine_chunks()
        is_kept &= ~pyarrow.compute.is_in(scores["row_id"], overlaps).to_numpy()
    removed = rows_in - int(is_kept.sum())
    return Stage(DECONTAMINATE, rows_in, rows_in - removed, {REPEATS: removed} if removed else {})


def _first_of_each(row_ids: pyarrow.ChunkedArray, is_kept: np.ndarray) -> np.ndarray:
    """Whether no kept row before it has its id."""
    is_first = np.zeros(len(is_kept), dtype=bool)
    places = np.flatnonzero(is_kept)
    _, first = np.unique(row_ids.to_numpy()[places].astype(str), return_index=True)
    is_first[places[first]] = True
    return is_first


def _beginnings(dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> dict[Place, str]:
    """What some rows begin with: of those that were left out as the rejects tell it, of the others as the dataset has them."""
    places: dict[Place, str] = {(row["file"], row["line"]): row["row_id"] for row in rows}
    found: dict[Place, str] = {}
    if not places:
        return found
    with dataset.check_file("rejects").open(encoding="utf-8") as lines:
        for listed in map(json.loads, lines):
            if (place := (listed["file"], listed["line"])) in places:
                found[place] = listed["raw"]
    others = {row_id for place, row_id in places.items() if not found.get(place)}
    kept = {row.pop("row_id"): json.dumps(row, ensure_ascii=False) for row in _rows_of(dataset, others)}
    texts = {place: found.get(place) or kept.get(row_id, "") for place, row_id in places.items()}
    return {place: " ".join(text.split())[:MAX_EXAMPLE_CHARS] for place, text in texts.items()}


def _rows_of(dataset: Dataset, row_ids: set[str]) -> Iterator[dict[str, Any]]:
    if not row_ids:
        return
    wanted = pyarrow.array(sorted(row_ids), pyarrow.string())
    for split in dataset.num_rows:
        with parquet.ParquetFile(dataset.split_path(split), pre_buffer=False) as file:
            for batch in file.iter_batches():
                yield from batch.filter(pyarrow.compute.is_in(batch["row_id"], wanted)).to_pylist()
