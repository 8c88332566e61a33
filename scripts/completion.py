"""What a shell is offered behind the Tab key: names of runs, experiments, configs; quick, for somebody waits."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from nexa_core.paths import Layout
from nexa_core.runs import RUN_ID, RunFolder, is_evaluation

MOST = 200
"""Offered at once: of more a shell would only ask whether to show them."""

CHECKPOINT_SUFFIXES = (".pt", ".sharded")


def complete_run(incomplete: str) -> list[str]:
    """Ids of runs, the newest first."""
    runs = Layout.from_environment().runs
    found = [
        (match["time"], int(match["attempt"] or 1), RunFolder(runs / experiment / name))
        for experiment in _names(runs)
        for name in _names(runs / experiment)
        if name.startswith(incomplete) and (match := RUN_ID.match(name))
    ]
    newest_first = (run for _, _, run in sorted(found, key=lambda each: (each[:2], each[2].run_id), reverse=True))
    return list(islice((run.run_id for run in newest_first if not is_evaluation(run)), MOST))


def complete_experiment(incomplete: str) -> list[str]:
    return _beginning(incomplete, _names(Layout.from_environment().runs))


def complete_state(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("running", "finished", "interrupted", "failed", "pruned", "partial"))


def complete_tier(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("lab", "scratch", "durable", "shared"))


def complete_config(incomplete: str) -> list[str]:
    """YAML files and folders, from the folder that has been typed so far."""
    return _paths(incomplete, (".yaml", ".yml"))


def complete_checkpoint(incomplete: str) -> list[str]:
    """Checkpoints of the newest finished run; and those below a folder that has been typed."""
    shown = f"{Layout.from_environment().checkpoints}/"
    found = _beginning(incomplete, _entries(shown, CHECKPOINT_SUFFIXES))
    return found or _paths(incomplete, CHECKPOINT_SUFFIXES)


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    found = _beginning(incomplete, _entries(incomplete.rpartition("/")[0] + "/" if "/" in incomplete else "", suffixes))
    if len(found) == 1 and found[0].endswith(
        "/"
    ):  # or the shell would put a space behind it, as behind a finished word
        return _beginning(found[0], _entries(found[0], suffixes)) or found
    return found


def _entries(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """What has such a name in a folder, and the folders there; the folder as it was typed, with its slash, stands in front."""
    try:
        for entry in os.scandir(folder or "."):
            if entry.name.endswith(suffixes):
                yield f"{folder}{entry.name}"
            elif entry.is_dir() and not entry.name.startswith("."):
                yield f"{folder}{entry.name}/"
    except OSError:
        return


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))[:MOST]


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from os.listdir(folder)
    except OSError:
        return
