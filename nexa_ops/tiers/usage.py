"""How much each tier holds, by kind of file, and how much room is left there."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core.paths import Layout
from nexa_core.storage.sync import open_place
from nexa_ops.runs.table import size_text
from nexa_ops.tiers.places import VARIABLES, Tier, read_tiers

KINDS = (
    ("data/raw/", "raw data"),
    ("data/processed/", "datasets"),
    ("artifacts/package/", "packages"),
    ("artifacts/runs/", "runs"),
    ("artifacts/reproductions/", "reproductions"),
    ("artifacts/tune/", "searches"),
    ("runs/", "manifests"),
    ("logs/", "logs"),
    (".cache/", "cache"),
)
OTHER = "other"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Usage:
    """What one tier holds."""

    tier: Tier
    size_bytes: dict[str, int]
    """By kind."""
    free_bytes: int | None
    """None where nobody can say."""

    @property
    def total_bytes(self) -> int:
        return sum(self.size_bytes.values())


@dataclass(frozen=True)
class Storage:
    usages: tuple[Usage, ...]

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "tier": each.tier.name,
                "where": each.tier.where,
                "size_bytes": each.size_bytes,
                "total_bytes": each.total_bytes,
                "free_bytes": each.free_bytes,
            }
            for each in self.usages
        ]

    def as_text(self) -> str:
        """A line for each kind, a column for each tier."""
        kinds = [
            kind for kind in (*dict.fromkeys(_all_kinds()),) if any(each.size_bytes.get(kind) for each in self.usages)
        ]
        rows = [("", *(each.tier.name for each in self.usages))]
        rows += [(kind, *(_text(each.size_bytes.get(kind)) for each in self.usages)) for kind in kinds]
        rows.append(("total", *(size_text(each.total_bytes) for each in self.usages)))
        rows.append(("free", *(_text(each.free_bytes) for each in self.usages)))
        lines = [f"{name:<12}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in rows]
        lines += [
            f"{each.tier.name}: {each.tier.where}{'' if each.tier.is_there else ' (not there: is it mounted?)'}"
            for each in self.usages
        ]
        missing = [
            variable for name, variable in VARIABLES.items() if name not in {each.tier.name for each in self.usages}
        ]
        lines += [f"not set: {', '.join(missing)} (POLICY.md says what they are for)"] if missing else []
        return "\n".join(lines)


def measure(layout: Layout, environment: Mapping[str, str]) -> Storage:
    """Look through the laboratory and every tier that is set; a link counts where its target lies."""
    return Storage(tuple(_measure(tier) for tier in read_tiers(layout, environment)))


def _measure(tier: Tier) -> Usage:
    sizes: Counter[str] = Counter()
    for key, size_bytes in _files(tier):
        sizes[kind_of(key)] += size_bytes
    return Usage(tier, dict(sizes), _free(tier))


def kind_of(key: str) -> str:
    """What kind of file lies at `key` in a laboratory."""
    if key.startswith(("artifacts/checkpoints/", "artifacts/runs/")) and "/checkpoints/" in f"/{key}":
        return CHECKPOINTS
    return next((kind for prefix, kind in KINDS if key.startswith(prefix)), OTHER)


def _files(tier: Tier) -> Iterator[tuple[str, int]]:
    """Key and size of each; in a folder only what a laboratory has, for a project's other files may lie beside it."""
    if not tier.is_folder:
        yield from (
            (entry.key, entry.size_bytes) for entry in open_place(tier.where).entries(lambda key: True).values()
        )
        return
    root = Path(tier.where)
    for top in ("data", "artifacts", "runs", "logs", ".cache"):
        for folder, _, names in os.walk(root / top):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    yield os.path.relpath(path, root).replace(os.sep, "/"), os.lstat(path).st_size


def _free(tier: Tier) -> int | None:
    if not tier.is_folder or not Path(tier.where).exists():
        return None
    return shutil.disk_usage(tier.where).free


def _all_kinds() -> Iterator[str]:
    yield from (kind for _, kind in KINDS)
    yield from (CHECKPOINTS, OTHER)


def _text(size_bytes: int | None) -> str:
    return "" if not size_bytes else size_text(size_bytes)
