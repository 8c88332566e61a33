"""Manifests of datasets: what is in one, where it came from, and whether its files still are what they were."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.paths import Layout
from nexa_data.split import HELD_OUT

FORMAT = "nexa.dataset/1"

BESIDE = ("tokenizer", "rejects", "scores", "overlaps", "filtered", "rejected")
"""What a manifest calls the files that belong to a dataset and are no split of it."""

Manifest = Mapping[str, Any]
Stood = tuple[Path, Manifest]
"""A dataset on disk: where its manifest lies, and the manifest."""


def read_manifest(path: Path) -> Manifest | None:
    """The dataset manifest at `path`; None where there is none, or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("format") == FORMAT else None


def list_manifests(layout: Layout, category: str) -> list[Stood]:
    """The manifest of each dataset of a category with its path, by key."""
    paths = sorted(layout.dataset_manifests(category).glob("*.json"))
    return [(path, manifest) for path in paths if (manifest := read_manifest(path)) is not None]


def describe_file(layout: Layout, path: Path, **facts: Any) -> dict[str, Any]:
    """A file as a manifest records it: path, what is known of it, size and digest."""
    size = path.stat().st_size
    return {"path": layout.relative(path), **facts, "bytes": size, "sha256": digests.of_file(path)}


def is_pretrain(manifest: Manifest) -> bool:
    """Whether a dataset's training rows are the numbered shards of the one folder `training/pretrain`."""
    return bool(manifest["config"].get("output", {}).get("name") == "pretrain")


def training_splits(manifest: Manifest) -> tuple[str, ...]:
    """The splits that a model may be trained on, in order: a pretraining dataset's shards, else `train`."""
    return (
        tuple(split for split in manifest["splits"] if split not in HELD_OUT) if is_pretrain(manifest) else ("train",)
    )


def files_of(manifest: Manifest) -> Iterator[Mapping[str, Any]]:
    """The record of each file that belongs to a dataset."""
    yield from manifest["splits"].values()
    yield from (manifest[name] for name in BESIDE if manifest.get(name) is not None)
    if manifest.get("sequences") is not None:
        yield from manifest["sequences"]["shards"].values()
        if "targets" in manifest["sequences"]:
            yield manifest["sequences"]["targets"]


def damage(layout: Layout, record: Mapping[str, Any], *, by_size_alone: bool = False) -> str | None:
    """What is wrong with a recorded file, or None: its size is looked at first, then its digest."""
    path = layout.absolute(record["path"])
    if not path.is_file():
        return f"{record['path']} is missing"
    if path.stat().st_size != record["bytes"]:
        return f"{record['path']} has {path.stat().st_size} bytes instead of {record['bytes']}"
    if not by_size_alone and digests.of_file(path) != record["sha256"]:
        return f"{record['path']} has other bytes than when it was prepared (sha256 differs)"
    return None


def differences(manifest: Manifest, config: Mapping[str, Any], origins: list[dict[str, Any]]) -> list[str]:
    """What a dataset was made of and what it would be made of now, where the two differ."""
    changed = changed_settings(manifest, config)
    recorded = [*manifest["sources"], *manifest.get("evaluation_sets", [])]
    old, new = ({origin["file"]: origin["sha256"] for origin in each} for each in (recorded, origins))
    changed += [f"{file} is new" for file in sorted(new.keys() - old.keys())]
    changed += [f"{file} is gone" for file in sorted(old.keys() - new.keys())]
    changed += [f"{file} has other content" for file in sorted(old.keys() & new.keys()) if old[file] != new[file]]
    return changed


def changed_settings(manifest: Manifest, config: Mapping[str, Any]) -> list[str]:
    """The settings that a dataset was made with and those of `config`, where the two differ."""
    then, now = _flat(manifest["config"]), _flat(config)
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return [f"{key} was {json.dumps(then.get(key))} and is {json.dumps(now.get(key))}" for key in keys]


def fingerprint(config: Mapping[str, Any], origins: list[dict[str, Any]], code: str) -> str:
    """The digest of everything that decides a dataset's bytes."""
    sources = [[origin["file"], origin["sha256"]] for origin in origins]
    return digests.of_value({"config": config, "sources": sources, "code": code})


@cache
def code_digest() -> str:
    """The digest of the source that makes datasets, `nexa_data` and what it stands on."""
    home = Path(__file__).resolve().parent.parent
    return digests.of_tree((path for name in ("nexa_core", "nexa_data") for path in (home / name).rglob("*.py")), home)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        inner: leaf
        for name, below in value.items()
        for inner, leaf in _flat(below, f"{key}.{name}".lstrip(".")).items()
    }
