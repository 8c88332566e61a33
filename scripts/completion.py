"""What a shell is offered behind the Tab key: names of runs, experiments, configs; quick, for somebody waits."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nexa_core.paths import Layout

MOST = 200
"""Offered at once: of more a shell would only ask whether to show them."""


def complete_run(incomplete: str) -> list[str]:
    """Ids of runs, the newest first."""
    runs = Layout.from_environment().runs
    names = [name for experiment in _names(runs) for name in _names(runs / experiment) if name.startswith(incomplete)]
    return sorted((name for name in names if "." not in name), key=_time, reverse=True)[:MOST]


def complete_experiment(incomplete: str) -> list[str]:
    return _beginning(incomplete, _names(Layout.from_environment().runs))


def complete_state(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("running", "finished", "interrupted", "failed", "pruned", "partial"))


def complete_tier(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("lab", "scratch", "durable", "shared"))


def complete_config(incomplete: str) -> list[str]:
    """YAML files and folders, from the folder that has been typed so far."""
    folder, _, _ = incomplete.rpartition("/")
    before = f"{folder}/" if folder or incomplete.startswith("/") else ""
    found = []
    try:
        for entry in os.scandir(before or "."):
            if entry.name.endswith((".yaml", ".yml")):
                found.append(f"{before}{entry.name}")
            elif entry.is_dir() and not entry.name.startswith("."):
                found.append(f"{before}{entry.name}/")
    except OSError:
        return []
    return _beginning(incomplete, found)


def complete_checkpoint(incomplete: str) -> list[str]:
    """Checkpoints of the newest finished run, and those below a folder that has been typed."""
    layout = Layout.from_environment()
    folder = Path(incomplete).parent if "/" in incomplete else layout.checkpoints
    names = [
        f"{folder}/{name}" for name in _names(folder) if name.endswith((".pt", ".sharded")) or (folder / name).is_dir()
    ]
    return _beginning(incomplete, names)


def _time(name: str) -> list[str]:
    return name.split("_")[-3:]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))[:MOST]


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from os.listdir(folder)
    except OSError:
        return
