"""Which checkpoint is packed and where it comes from: the run that made it, by digest, and what that run recorded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.config import RunConfig, load_config
from nexa_core.errors import GateError, UserError
from nexa_core.lineage import Lineage, read_lineage, run_of_file
from nexa_core.manifest import Manifest, list_manifests, read_manifest
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, is_finished

# What a config may differ in from the run that is packed for it: neither weights nor scores depend on these.
FREE_SECTIONS = ("tracking", "cost")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, every recorded digest found to hold."""

    run: RunFolder
    manifest: Manifest
    lineage: Lineage
    recorded: str
    """The checkpoint as the run recorded it, wherever the file lies now."""

    @property
    def is_result(self) -> bool:
        """Whether it is the one the run's scores are of."""
        return self.recorded == self.manifest["checkpoint"]

    @property
    def name(self) -> str:
        return self.run.run_id if self.is_result else f"{self.run.run_id}_{Path(self.recorded).stem}"


def choose_checkpoint(layout: Layout, checkpoint_path: Path | None, config_path: Path | None) -> Path:
    """The checkpoint given, or the result of the newest finished run of exactly the config given.

    Raises:
        UserError: neither or both are given, or no finished run has that config.
    """
    if checkpoint_path is not None and config_path is not None:
        raise UserError("Say what to pack by --checkpoint or by --config, not by both.")
    if checkpoint_path is not None:
        return checkpoint_path
    if config_path is None:
        raise UserError("Say what to pack: --checkpoint <path>, or --config <file> for the newest finished run of it.")
    return _result_of_config(layout, config_path)


def origin_of(layout: Layout, path: Path) -> Origin:
    """The run that made this checkpoint.

    Raises:
        UserError: the run has not finished.
        GateError: no run recorded these bytes, or the run's scores or predictions are not what it recorded.
    """
    run = run_of_file(layout, path)
    beside = RunFolder(path.resolve().parent.parent)
    unfinished = run or (beside if beside.lineage.exists() else None)
    if unfinished and not is_finished(layout, unfinished):
        raise UserError(f"Run {unfinished.run_id} has not finished; finish it first: nexa train ... --resume")
    if run is None:
        raise GateError(
            f"{path} does not have the digest of any checkpoint that a finished run recorded; it was altered, or its "
            f"run is not below {layout.runs}. It is not packed."
        )
    manifest, lineage = read_manifest(layout.run_manifests / f"{run.run_id}.json"), read_lineage(run)
    assert lineage is not None
    _check_results(layout, run, manifest, lineage)
    digest, outputs = digests.of_file(path), lineage["outputs"]
    names = [name for name, recorded in outputs.items() if recorded == digest]
    return Origin(run, manifest, lineage, manifest["checkpoint"] if manifest["checkpoint"] in names else names[0])


def scores_in(metrics: dict[str, Any]) -> dict[str, float]:
    """Name and value of each score in the content of a `metrics.json`."""
    return {name: metric["value"] for name, metric in metrics["metrics"].items()}


def _result_of_config(layout: Layout, config_path: Path) -> Path:
    config = load_config(config_path, RunConfig)
    manifests = [
        manifest
        for manifest in reversed(list_manifests(layout))
        if Path(manifest["run_dir"]).parent.name == config.experiment and manifest.get("checkpoint")
    ]
    for manifest in manifests:
        if _has_config(RunFolder(layout.absolute(manifest["run_dir"])), config):
            return layout.absolute(manifest["checkpoint"])
    if not manifests:
        raise UserError(
            f"No run of experiment '{config.experiment}' ({config_path}) has finished, so there is no checkpoint to "
            f"pack. Train one first: nexa train --config {config_path}"
        )
    newest = manifests[0]
    raise UserError(
        f"No finished run has exactly the config {config_path}; the newest of experiment '{config.experiment}', "
        f"{newest['run_id']}, has other settings. To pack that one: --checkpoint {layout.absolute(newest['checkpoint'])}"
    )


def _has_config(run: RunFolder, config: RunConfig) -> bool:
    try:
        its = load_config(run.config, RunConfig)
    except UserError:  # gone, or of another version
        return False
    return all(
        getattr(its, name) == getattr(config, name) for name in RunConfig.model_fields if name not in FREE_SECTIONS
    )


def _check_results(layout: Layout, run: RunFolder, manifest: Manifest, lineage: Lineage) -> None:
    for recorded in (run.metrics, run.predictions):
        digest = lineage["outputs"].get(layout.relative(recorded))
        if digest is not None and (not recorded.exists() or digests.of_file(recorded) != digest):
            raise GateError(f"{recorded} does not have the digest that run {run.run_id} recorded. Nothing is packed.")
    if manifest["metrics"] != scores_in(json.loads(run.metrics.read_bytes())):
        raise GateError(f"The manifest of run {run.run_id} tells other scores than {run.metrics}. Nothing is packed.")
