"""The leaderboard: finished runs ranked by a metric, each with its interval, dataset by dataset."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.manifest import Manifest, list_manifests
from nexa_core.paths import Layout
from nexa_models.results import bound_text

LESS_IS_BETTER = {"loss", "log_loss", "perplexity", "bits_per_byte", "calibration_error", "unigram_loss"}


@dataclass(frozen=True)
class Row:
    rank: int
    run_id: str
    model: str
    dataset: str
    metric: str
    value: float
    low: float | None
    high: float | None
    wall_seconds: float
    cost_usd: float | None


@dataclass(frozen=True)
class Leaderboard:
    rows: tuple[Row, ...]

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def as_text(self) -> str:
        """A block for each dataset and metric: scores on different rows are not compared."""
        if not self.rows:
            return "no finished runs yet; train one: nexa train --config configs/default.yaml"
        lines: list[str] = []
        for row in self.rows:
            if row.rank == 1:
                lines.append(
                    f"{row.dataset}, {row.metric} ({'less' if row.metric in LESS_IS_BETTER else 'more'} is better)"
                )
            price = "" if row.cost_usd is None else f"  {row.cost_usd:.4f} USD"
            interval = f"[{bound_text(row.low)}, {bound_text(row.high)}]"
            lines.append(
                f"  {row.rank:>3}  {row.value:.4f} {interval:<20} {row.model:<16} {row.wall_seconds:>7.1f} s{price}  {row.run_id}"
            )
        return "\n".join(lines)


def make_leaderboard(layout: Layout, *, experiment: str | None = None, metric: str | None = None) -> Leaderboard:
    """Rank the finished runs by `metric`, or by accuracy (classifiers) and bits per byte (language models).

    Raises:
        UserError: no run has this metric, or there is no such experiment.
    """
    manifests = list_manifests(layout)
    if experiment is not None:
        experiments = {manifest["run_dir"].split("/")[-2] for manifest in manifests}
        if experiment not in experiments:
            raise UserError(unknown("experiment", experiment, experiments))
        manifests = [manifest for manifest in manifests if manifest["run_dir"].split("/")[-2] == experiment]
    known = {name for manifest in manifests for name in manifest["metrics"]}
    if metric is not None and metric not in known:
        raise UserError(unknown("metric", metric, known))
    blocks: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
    for manifest in manifests:
        name = metric or ("accuracy" if "accuracy" in manifest["metrics"] else "bits_per_byte")
        if name in manifest["metrics"]:
            blocks[manifest["dataset"], name].append(manifest)
    rows: list[Row] = []
    for (dataset, name), block in sorted(blocks.items()):
        sign = 1 if name in LESS_IS_BETTER else -1
        block.sort(key=lambda manifest: (sign * manifest["metrics"][name], manifest["run_id"]))
        rows += [_row(layout, rank, manifest, dataset, name) for rank, manifest in enumerate(block, start=1)]
    return Leaderboard(tuple(rows))


def _row(layout: Layout, rank: int, manifest: Manifest, dataset: str, metric: str) -> Row:
    folder = layout.absolute(manifest["run_dir"])
    scored = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"][metric]
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    return Row(
        rank=rank,
        run_id=manifest["run_id"],
        model=manifest["model"],
        dataset=dataset,
        metric=metric,
        value=scored["value"],
        low=scored["low"],
        high=scored["high"],
        wall_seconds=cost["wall_seconds"],
        cost_usd=cost["cost_usd"],
    )
