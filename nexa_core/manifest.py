"""Run manifests: one small JSON file for each finished run, to the runbook's schema."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout

LATEST = "run_manifest.json"

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "NexaRunManifest",
    "type": "object",
    "properties": {
        "run_id": {"type": "string"},
        "config": {"type": "string"},
        "run_dir": {"type": "string"},
        "metrics": {"type": "object", "additionalProperties": {"type": "number"}},
        "checkpoint": {"type": ["string", "null"]},
        "created_at": {"type": "string", "format": "date-time"},
        "version": {"type": "string"},
        "dataset": {"type": "string"},
        "model": {"type": "string"},
    },
    "required": ["run_id", "config", "run_dir", "metrics"],
    "additionalProperties": False,
}

Manifest = dict[str, Any]

FORMATS = jsonschema.FormatChecker(formats=())


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    """RFC 3339: a date, a time and an offset from UTC."""
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def check_manifest(manifest: Manifest, *, where: str) -> None:
    """Hold `manifest` against the schema, and its metrics against NaN and infinity.

    Raises:
        UserError: naming the key and what is wrong with it.
    """
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=FORMATS)
    mistakes = sorted(validator.iter_errors(manifest), key=str)
    if mistakes:
        key = "/".join(str(part) for part in mistakes[0].absolute_path) or "the manifest"
        raise UserError(f"{where}: not a run manifest: {key}: {mistakes[0].message}")
    for name, value in manifest["metrics"].items():
        if not math.isfinite(value):
            raise UserError(f"{where}: metric '{name}' is {value}; a manifest holds finite numbers only")


def write_manifest(layout: Layout, manifest: Manifest, *, publishes: bool = True) -> Path:
    """Write `runs/manifests/<run_id>.json` and show it as the newest, unless told not to; the last write of a run."""
    path = layout.run_manifests / f"{manifest['run_id']}.json"
    check_manifest(manifest, where=str(path))
    durable.write_json(path, manifest)
    if publishes:
        durable.publish(path, layout.run_manifests / LATEST)
    return path


def read_manifest(path: Path) -> Manifest:
    """The checked manifest at `path`."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = [other.stem for other in path.parent.glob("*.json")]
        raise UserError(f"No run manifest {path}.{did_you_mean(path.stem, known)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    check_manifest(manifest, where=str(path))
    return manifest


def list_manifests(layout: Layout) -> list[Manifest]:
    """Every finished run's manifest, oldest first."""
    paths = (path for path in layout.run_manifests.glob("*.json") if path.name != LATEST)
    manifests = [read_manifest(path) for path in paths]
    return sorted(manifests, key=lambda manifest: (manifest.get("created_at", ""), manifest["run_id"]))
