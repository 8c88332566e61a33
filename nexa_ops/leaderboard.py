"""The leaderboard: finished runs ranked by a metric, each with its interval; only scores of the same rows are compared."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.manifest import Manifest, list_manifests
from nexa_core.paths import Layout
from nexa_models.scores import MORE_IS_BETTER, interval_text, main_score


@dataclass(frozen=True)
class Entry:
    """A finished run with one of its scores."""

    run_id: str
    model: str
    dataset: str
    data_digest: str | None
    """Fingerprint of the dataset: one of the same name may have been made anew."""
    split: str | None
    metric: str
    value: float
    low: float | None
    high: float | None
    wall_seconds: float | None
    cost_usd: float | None
    problem: str | None
    """Why a part of the above is unknown."""

    @property
    def rows_scored(self) -> tuple[str, str, str]:
        """What tells the rows apart that scores are of."""
        return self.dataset, self.data_digest or "", self.split or ""


@dataclass(frozen=True)
class Row:
    rank: int
    entry: Entry


@dataclass(frozen=True)
class Block:
    """The ranking of one metric on the same rows; equal scores share a rank."""

    rows: tuple[Row, ...]

    def as_text(self, *, tell_data: bool) -> str:
        first = self.rows[0].entry
        data = f" as of {first.data_digest[:12]}" if tell_data and first.data_digest else ""
        direction = "more" if MORE_IS_BETTER.get(first.metric, True) else "less"
        title = f"{first.dataset}{data}, {first.split or 'unknown'} split, {first.metric} ({direction} is better)"
        return "\n".join([title, *(_line(row) for row in self.rows)])


@dataclass(frozen=True)
class Leaderboard:
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...]
    """Runs that have no score to rank by."""

    def as_json(self) -> list[dict[str, Any]]:
        return [{"rank": row.rank, **asdict(row.entry)} for block in self.blocks for row in block.rows]

    def as_text(self) -> str:
        """A block of lines for each dataset, split and metric."""
        if not self.blocks and not self.left_out:
            return "no finished runs yet; train one: nexa train --config configs/default.yaml"
        datasets = {(entry.dataset, entry.data_digest) for block in self.blocks for entry in [block.rows[0].entry]}
        names = [dataset for dataset, _ in datasets]
        lines = [block.as_text(tell_data=names.count(block.rows[0].entry.dataset) > 1) for block in self.blocks]
        return "\n".join([*lines, *(f"not ranked, without such a score: {run_id}" for run_id in self.left_out)])


def make_leaderboard(layout: Layout, *, experiment: str | None = None, metric: str | None = None) -> Leaderboard:
    """Rank the finished runs by `metric`, or by accuracy (classifiers) and bits per byte (language models).

    Raises:
        UserError: no run has this metric, or there is no such experiment.
    """
    manifests = _of_experiment(list_manifests(layout), experiment)
    known = {name for manifest in manifests for name in manifest["metrics"]}
    if metric is not None and metric not in known:
        raise UserError(unknown("metric", metric, known))
    grouped: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    left_out = []
    for manifest in manifests:
        name = metric or main_score(manifest["metrics"])
        if name is None or name not in manifest["metrics"]:
            left_out.append(manifest["run_id"])
            continue
        entry = _read_entry(layout, manifest, name)
        grouped[(*entry.rows_scored, name)].append(entry)
    return Leaderboard(tuple(Block(tuple(_rank(entries))) for _, entries in sorted(grouped.items())), tuple(left_out))


def _of_experiment(manifests: list[Manifest], experiment: str | None) -> list[Manifest]:
    if experiment is None:
        return manifests
    experiments = {Path(manifest["run_dir"]).parent.name for manifest in manifests}
    if experiment not in experiments:
        raise UserError(unknown("experiment", experiment, experiments))
    return [manifest for manifest in manifests if Path(manifest["run_dir"]).parent.name == experiment]


def _rank(entries: list[Entry]) -> Iterator[Row]:
    """Best first; a run that scores as the one before it has its rank, and the next goes on counting."""
    sign = -1 if MORE_IS_BETTER.get(entries[0].metric, True) else 1
    ordered = sorted(entries, key=lambda entry: (sign * entry.value, entry.run_id))
    rank = 1
    for place, entry in enumerate(ordered, start=1):
        rank = rank if place > 1 and entry.value == ordered[place - 2].value else place
        yield Row(rank, entry)


def _read_entry(layout: Layout, manifest: Manifest, metric: str) -> Entry:
    """The manifest's score, and from the run's folder what a manifest has no room for."""
    folder = layout.absolute(manifest["run_dir"])
    try:
        described, cost, lineage = (_read(folder / name) for name in ("metrics.json", "cost.json", "lineage.json"))
        scored, problem = described["metrics"][metric], None
    except (OSError, ValueError, KeyError, TypeError) as error:
        described, cost, lineage, scored = {}, {}, {}, {}
        what = f"cannot be read: {error}" if folder.exists() else "is gone"
        problem = f"{manifest['run_dir']} {what}"
    return Entry(
        run_id=manifest["run_id"],
        model=manifest.get("model", "unknown model"),
        dataset=manifest.get("dataset", "unknown dataset"),
        data_digest=lineage.get("inputs", {}).get("dataset", {}).get("fingerprint"),
        split=described.get("split"),
        metric=metric,
        value=manifest["metrics"][metric],
        low=scored.get("low"),
        high=scored.get("high"),
        wall_seconds=cost.get("wall_seconds"),
        cost_usd=cost.get("cost_usd"),
        problem=problem,
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _line(row: Row) -> str:
    entry = row.entry
    interval = "interval unknown" if entry.problem else interval_text(entry.low, entry.high)
    seconds = "" if entry.wall_seconds is None else f"{entry.wall_seconds:.1f} s"
    price = "" if entry.cost_usd is None else f"  {entry.cost_usd:.4f} USD"
    problem = f"  ({entry.problem})" if entry.problem else ""
    return f"  {row.rank:>3}  {entry.value:.4f}  {interval:<18}  {entry.model:<16} {seconds:>9}{price}  {entry.run_id}{problem}"
