"""What there is to tell of a run: settings, tags, dataset, scores and files, as they lie in its folder."""

import bisect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nexa_core.paths import Layout
from nexa_core.runs import RUN_ID, RunFolder


@dataclass(frozen=True)
class Story:
    """A run, and where the laboratory is."""

    layout: Layout
    run: RunFolder
    after: int = 0
    """The step that this attempt began at."""

    @property
    def experiment(self) -> str:
        return self.run.path.parent.name

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def pace_path(self) -> Path:
        return self.layout.logs / f"{self.run_id}.pace.jsonl"

    @property
    def prometheus_path(self) -> Path:
        return self.layout.logs / f"{self.run_id}.prom"

    def lock_path(self, destination: str) -> Path:
        """Held by who sends the run there."""
        return self.layout.logs / f".{self.run_id}.{destination}.lock"

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.run.config.read_text(encoding="utf-8"))
        return found

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The settings by their dotted names."""
        return dict(_flat(self.config))

    @property
    def lineage(self) -> dict[str, Any]:
        return _read(self.run.lineage)

    @property
    def commit(self) -> str | None:
        return (_read(self.run.environment).get("git") or {}).get("commit")

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """The manifest of the dataset; without content where it is gone."""
        return _read(self._dataset_manifest)

    @property
    def began_at(self) -> datetime:
        match = RUN_ID.match(self.run_id)
        assert match is not None
        return datetime.strptime(match["time"], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)

    @property
    def ended_at(self) -> datetime | None:
        """When its manifest was written, of a run that has one."""
        created = self._manifest.get("created_at")
        return None if created is None else datetime.fromisoformat(created)

    def scores(self) -> tuple[int, dict[str, float]]:
        """The step and the final scores, `<split>_<name>`, each with the ends of its interval; none before the end."""
        found = _read(self.run.metrics)
        values: dict[str, float] = {}
        for name, metric in found.get("metrics", {}).items():
            for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                if metric.get(key) is not None:
                    values[f"{found['split']}_{name}{suffix}"] = float(metric[key])
        return int(found.get("step", 0)), values

    def files(self) -> list[Path]:
        """What a person would want to look at: all but the checkpoints and the lock."""
        named = sorted(path for path in self.run.path.iterdir() if path.is_file() and path.suffix != ".lock")
        shown = [path for path in named if not path.name.startswith(".")]
        return [*shown, *([self._dataset_manifest] if self._dataset_manifest.exists() else [])]

    def model(self) -> Path | None:
        """The run's chosen checkpoint, once it is chosen."""
        recorded = self._manifest.get("checkpoint")
        path = None if recorded is None else self.layout.absolute(recorded)
        return path if path is not None and path.is_file() else None

    def samples(self, count: int) -> list[dict[str, Any]]:
        """The first predictions, where they were kept."""
        if not self.run.predictions.exists():
            return []
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.run.predictions) as file:
            for batch in file.iter_batches(batch_size=count):
                rows: list[dict[str, Any]] = batch.to_pylist()
                return rows
        return []

    @property
    def _manifest(self) -> dict[str, Any]:
        return _read(self.layout.run_manifests / f"{self.run_id}.json")

    @property
    def _dataset_manifest(self) -> Path:
        data = self.config["data"]
        return self.layout.dataset_manifests(data["category"]) / f"{data['dataset']}_{data['version']}.json"


class Times:
    """When a step was, in seconds since 1970: read off the pace record, between whose lines it is taken as even."""

    def __init__(self, story: Story):
        self._record = story.run.step_metrics
        self._steps: list[int] = []
        self._times: list[float] = []

    def learn(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            while self._steps and self._steps[-1] >= line["step"]:  # an attempt that was killed had come further
                self._steps.pop()
                self._times.pop()
            self._steps.append(line["step"])
            self._times.append(line["time"])

    def of(self, step: int) -> float:
        """Of a step beyond the last known, when the record last changed."""
        right = bisect.bisect_left(self._steps, step)
        if right == len(self._steps):
            return self._record.stat().st_mtime
        if right == 0:
            return self._times[0]
        (before, after), (began, ended) = self._steps[right - 1 : right + 1], self._times[right - 1 : right + 1]
        return began + (ended - began) * (step - before) / (after - before)


def without_credentials(uri: str) -> str:
    """The address as it may be shown."""
    return re.sub(r"://[^/@\s]*@", "://", uri)


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, each in value.items():
        if isinstance(each, Mapping) and each:
            found += _flat(each, f"{prefix}{name}.")
        elif each is not None:
            found.append((prefix + name, each))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return found
