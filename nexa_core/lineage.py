"""Lineage: what a run was made from and what it made, by digest, so that equal inputs can be held to equal outputs."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.environment import dependency_versions
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, is_finished, list_runs

logger = logging.getLogger(__name__)

Lineage = dict[str, Any]


def describe_inputs(
    *, config: dict[str, Any], dataset: dict[str, Any], seed: int, numerics: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides a run's bytes; its digest is the run's fingerprint."""
    return {
        "config": digests.of_value(config),
        "dataset": dataset,
        "code": digests.of_code(),
        "packages": dependency_versions(),
        "seed": seed,
        "numerics": numerics,
    }


def write_lineage(
    layout: Layout, run: RunFolder, *, kind: str, inputs: dict[str, Any], outputs: list[Path], parents: list[str]
) -> Lineage:
    """Write `lineage.json`: fingerprint, inputs, parents (files this was made from) and digests of `outputs`."""
    lineage = {
        "run_id": run.run_id,
        "kind": kind,
        "fingerprint": digests.of_value(inputs),
        "inputs": inputs,
        "parents": parents,
        "outputs": {layout.relative(path): digests.of_file(path) for path in outputs},
    }
    durable.write_json(run.lineage, lineage)
    return lineage


def read_lineage(run: RunFolder) -> Lineage | None:
    """The run's lineage; None when it never wrote one.

    Raises:
        UserError: the file is not what was written.
    """
    if not run.lineage.exists():
        return None
    try:
        return json.loads(run.lineage.read_bytes())
    except ValueError as error:
        raise UserError(f"{run.lineage} is damaged: {error}. Restore it, or move the run's folder away.") from None


def compare_with_twin(layout: Layout, lineage: Lineage) -> str | None:
    """One sentence on the newest earlier run with the same fingerprint: reproduced bit for bit, or what differs."""
    for run, other in _newest_first(layout):
        if run.run_id == lineage["run_id"]:
            continue
        if other["fingerprint"] == lineage["fingerprint"] and other["outputs"]:
            ours, theirs = outputs_by_name(lineage), outputs_by_name(other)
            differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            if not differing:
                return f"reproduces run {run.run_id} bit for bit ({len(ours)} files)"
            return f"DIVERGES from run {run.run_id}, which had the same inputs, in: {', '.join(differing)}"
    return None


def outputs_by_name(lineage: Lineage) -> dict[str, str]:
    """SHA-256 of each file that a run left, by its path in the run's folder."""
    return {path.rpartition(f"/{lineage['run_id']}/")[2]: digest for path, digest in lineage["outputs"].items()}


def run_of_file(layout: Layout, path: Path) -> RunFolder | None:
    """The run whose recorded outputs hold these very bytes, under whatever name they lie now.

    Equal runs leave equal files: of several, it is the one in whose folder the file lies, and else the newest that
    has finished.
    """
    digest, real = digests.of_file(path), path.resolve()
    makers = [run for run, lineage in _newest_first(layout) if digest in lineage["outputs"].values()]
    for run in makers:
        if real.is_relative_to(run.path.resolve()):
            return run
    return next((run for run in makers if is_finished(layout, run)), next(iter(makers), None))


def _newest_first(layout: Layout) -> Iterator[tuple[RunFolder, Lineage]]:
    """Every run that has a lineage; a damaged one is reported and passed over, for it is not the run asked about."""
    for run in reversed(list_runs(layout)):
        try:
            lineage = read_lineage(run)
        except UserError as error:
            logger.warning("%s", error)
            continue
        if lineage is not None:
            yield run, lineage
