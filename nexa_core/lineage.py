"""Lineage: what a run was made from and what it made, by digest, so that equal inputs can be held to equal outputs."""

import json
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.environment import dependency_versions
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, list_runs

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
    """The run's lineage; None when it never wrote one."""
    return json.loads(run.lineage.read_text(encoding="utf-8")) if run.lineage.exists() else None


def compare_with_twin(layout: Layout, lineage: Lineage) -> str | None:
    """One sentence on the newest earlier run with the same fingerprint: reproduced bit for bit, or what differs."""
    for run in reversed(list_runs(layout)):
        other = read_lineage(run) if run.run_id != lineage["run_id"] else None
        if other and other["fingerprint"] == lineage["fingerprint"] and other["outputs"]:
            ours, theirs = _by_name(lineage), _by_name(other)
            differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            if not differing:
                return f"reproduces run {run.run_id} bit for bit ({len(ours)} files)"
            return f"DIVERGES from run {run.run_id}, which had the same inputs, in: {', '.join(differing)}"
    return None


def run_of_file(layout: Layout, path: Path) -> RunFolder | None:
    """The finished run whose recorded outputs hold these very bytes, under whatever name they lie now; newest first."""
    digest = digests.of_file(path)
    for run in reversed(list_runs(layout)):
        lineage = read_lineage(run)
        if lineage is not None and digest in lineage["outputs"].values():
            return run
    return None


def _by_name(lineage: Lineage) -> dict[str, str]:
    return {Path(path).name: digest for path, digest in lineage["outputs"].items()}
