"""Run manifests: the runbook's schema to the letter."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nexa_core.errors import UserError
from nexa_core.manifest import SCHEMA, list_manifests, read_manifest, write_manifest
from nexa_core.paths import Layout

GOOD: dict[str, Any] = {
    "run_id": "run_20251030_213000",
    "config": "configs/default.yaml",
    "run_dir": "artifacts/runs/a/run_20251030_213000",
    "metrics": {"accuracy": 0.97, "loss": 1},
    "checkpoint": None,
    "created_at": "2025-10-30T21:30:00+00:00",
    "version": "v1",
    "dataset": "digits_v1",
    "model": "mlp",
}


def test_the_schema_is_the_runbooks() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["required"] == ["run_id", "config", "run_dir", "metrics"]
    assert SCHEMA["additionalProperties"] is False
    assert list(SCHEMA["properties"]) == list(GOOD)


def test_a_manifest_is_written_read_listed_and_shown_as_the_newest(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    path = write_manifest(layout, GOOD)
    later = {**GOOD, "run_id": "run_20251031_000000", "created_at": "2025-10-31T00:00:00+00:00"}
    write_manifest(layout, later)
    assert read_manifest(path) == GOOD
    assert list_manifests(layout) == [GOOD, later]
    assert json.loads((tmp_path / "runs/manifests/run_manifest.json").read_text()) == later
    assert re.match(r"^.+_\d{8}_\d{6}$", path.stem)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": {"loss": float("nan")}}, "metric 'loss' is nan"),
        ({"metrics": {"loss": float("inf")}}, "metric 'loss' is inf"),
        ({"metrics": {"loss": "low"}}, "metrics/loss"),
        ({"fingerprint": "abc"}, "Additional properties"),
        ({"checkpoint": 3}, "checkpoint"),
        ({"created_at": "yesterday"}, "created_at"),
    ],
)
def test_what_the_schema_forbids_is_refused_and_not_written(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        write_manifest(Layout(tmp_path), {**GOOD, **change})
    assert not list(tmp_path.rglob("*.json"))


def test_a_missing_required_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'metrics' is a required property"):
        write_manifest(Layout(tmp_path), {key: value for key, value in GOOD.items() if key != "metrics"})


def test_a_missing_manifest_names_the_nearest(tmp_path: Path) -> None:
    write_manifest(Layout(tmp_path), GOOD)
    with pytest.raises(UserError, match="Did you mean 'run_20251030_213000'"):
        read_manifest(tmp_path / "runs/manifests/run_20251030_213001.json")
