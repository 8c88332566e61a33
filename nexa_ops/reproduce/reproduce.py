"""A recorded run, run again in a corner of its own, and held against what it left the first time."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from nexa_core import digests, durable
from nexa_core.config import RunConfig
from nexa_core.errors import GateError, Interrupted, Preempted, UserError
from nexa_core.holder import at_rest
from nexa_core.lineage import read_lineage
from nexa_core.manifest import read_manifest
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_models.checkpoint import content_digest, load_checkpoint
from nexa_models.scores import interval_text
from nexa_ops.export import export
from nexa_ops.reproduce.record import EXPORTED_WEIGHTS, Record, read_record
from nexa_ops.reproduce.verdict import Verdict, judge
from nexa_train.finish import TrainingResult
from nexa_train.job import ensure_dataset
from nexa_train.start import ChangedInputs
from nexa_train.train import run as train

logger = logging.getLogger(__name__)

VERDICT = "verdict.json"
Ends = tuple[float | None, float | None]
"""None where it has no bound, or is not known."""


@dataclass(frozen=True)
class Reproduction:
    """What came of running a run again."""

    run_id: str
    repeated_id: str
    verdict: Verdict
    differing_inputs: tuple[str, ...]
    tolerance: float
    folder: str
    is_kept: bool
    intervals: dict[str, tuple[Ends, Ends]]
    """Low and high of each score, recorded and repeated."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "verdict": self.verdict.as_json(), "differing_inputs": list(self.differing_inputs)}

    def as_text(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        found = self.verdict
        for name, (recorded, repeated) in found.scores.items():
            before, now = self.intervals[name]
            same = "equal" if (recorded, before) == (repeated, now) else f"now {_score_text(repeated, now)}"
            yield f"  {name:<20} {_score_text(recorded, before)}, {same}"
        if self.differing_inputs:
            yield f"not as it was: {'; '.join(self.differing_inputs)}"
        if found.first_split is not None:
            yield f"first differs at {found.first_split.as_text()}"
        elif found.has_steps:
            yield "every step's numbers are equal"
        if found.weights_equal is not None:
            yield f"the weights are {'equal to the last bit' if found.weights_equal else 'other ones'}"
        yield f"{self._said()}\n{'the second run' if self.is_kept else 'verdict'} {self.folder}"

    def _said(self) -> str:
        found, what = self.verdict, f"run {self.run_id}"
        off = f"{found.largest_difference:.2g} of themselves"
        match found.kind:
            case "exact":
                return f"REPRODUCED {what}, bit for bit: {found.num_files} files"
            case "same results":
                return f"REPRODUCED {what} in every result; files that name the code, or what else changed, differ"
            case "within tolerance":
                return f"REPRODUCED {what} within {self.tolerance:g}: scores differ by at most {off}"
        return f"DIVERGED from {what}: scores differ by up to {off}, and {self.tolerance:g} is allowed"

    def require_pass(self, *, exact: bool) -> None:
        """Raises GateError when it diverged, or with `exact` where a result is not equal to the last bit."""
        allowed = ("exact", "same results") if exact else ("exact", "same results", "within tolerance")
        if self.verdict.kind not in allowed:
            wanted = "to the last bit" if exact else f"within {self.tolerance:g}"
            raise GateError(f"run {self.run_id} was not reproduced {wanted}")


def reproduce(layout: Layout, what: str, *, tolerance: float, keep: bool = False, anew: bool = False) -> Reproduction:
    """Train by a record's settings on its data, and compare all that comes out; nothing of the laboratory is replaced.

    Killed, the same call goes on with the second run.

    Args:
        what: a finished run's id, or a folder with a run's records, as `nexa export` writes them.
        tolerance: how far each score may be off, relative to the recorded one.
        keep: keep the second run where it came out equal; else only the verdict is.
        anew: begin the second run again.

    Raises:
        UserError: there is no such run, or what it was made from is not here.
        Preempted: the process was told to end, and has saved.
    """
    record = read_record(layout, what)
    config = record.config()
    dataset = ensure_dataset(layout, config.data)
    source = record.source(layout)
    folder = layout.artifacts / "reproductions" / record.run_id
    if anew:
        _remove_second_run(folder)
    if changed := record.differing_here(dataset.fingerprint):
        logger.warning("not as when the run was recorded: %s", "; ".join(changed))
    result = _repeat(replace(layout, apart=folder), config, record, source)
    reproduction = _compare(layout, record, result, folder, tolerance=tolerance, keep=keep)
    durable.write_json(folder / VERDICT, reproduction.as_json())
    if not reproduction.is_kept:
        for name in ("artifacts", "data", "logs", "runs"):
            durable.remove(folder / name)
    return reproduction


def _remove_second_run(folder: Path) -> None:
    for lock in folder.rglob("run.lock"):
        with at_rest(RunFolder(lock.parent)) as rests:
            if not rests:
                raise UserError(f"Another process trains {lock.parent.name}; wait for it, or end it first.")
    durable.remove(folder)


def _repeat(layout: Layout, config: RunConfig, record: Record, source: Path | None) -> TrainingResult:
    try:
        with _threads(record.inputs["numerics"].get("num_threads")):
            return train(config, layout=layout, config_path=record.folder.config, resume=True, resume_from=source)
    except ChangedInputs as error:
        again = f"nexa reproduce {record.run_id} --anew"
        raise UserError(f"{str(error).partition('.')[0]}. Begin the second run again: {again}") from None
    except Preempted as error:
        how = "interrupted" if isinstance(error, Interrupted) else "told to end"
        raise type(error)(f"{how}: the second run is saved; the same command goes on with it") from None


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with as many threads as the record was, for another number may round otherwise; so do processes begun meanwhile."""
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    if count is not None:
        torch.set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop("OMP_NUM_THREADS", None)
        if variable is not None:
            os.environ["OMP_NUM_THREADS"] = variable


def _compare(
    layout: Layout, record: Record, result: TrainingResult, folder: Path, *, tolerance: float, keep: bool
) -> Reproduction:
    lineage = read_lineage(result.run)
    assert lineage is not None
    repeated = Record(result.run, lineage)
    verdict = judge(
        record.outputs,
        repeated.outputs,
        scores=(record.scores, repeated.scores),
        steps=(record.folder.step_metrics, result.run.step_metrics),
        weights_equal=_equal_weights(replace(layout, apart=folder), layout, record, result),
        tolerance=tolerance,
    )
    differing = tuple(record.differing_inputs(repeated.inputs))
    is_kept = keep or verdict.kind not in ("exact", "same results")
    where = result.run.path if is_kept else folder / VERDICT
    before, now = record.scored(), repeated.scored()
    return Reproduction(
        record.run_id,
        result.run.run_id,
        verdict,
        differing,
        tolerance,
        layout.relative(where),
        is_kept,
        {name: (_ends(before.get(name, {})), _ends(now.get(name, {}))) for name in verdict.scores},
    )


def _ends(scored: dict[str, Any]) -> Ends:
    return scored.get("low"), scored.get("high")


def _score_text(value: float, ends: Ends) -> str:
    """To more digits than a score is read to: two runs may differ in the last."""
    interval = "interval unknown" if ends == (None, None) else interval_text(*ends)
    return f"{value:.6g} ({interval})"


def _equal_weights(apart: Layout, layout: Layout, record: Record, result: TrainingResult) -> bool | None:
    if record.exported_weights is not None:
        return _exported_digest(apart, result.checkpoint, record.exported_weights) == digests.of_file(
            record.exported_weights
        )
    path = _result_of(layout, record)
    if path is None:
        return None
    return content_digest(load_checkpoint(path).model) == content_digest(load_checkpoint(result.checkpoint).model)


def _result_of(layout: Layout, record: Record) -> Path | None:
    """The recorded run's own result, where it is still there and unaltered."""
    manifest_path = layout.run_manifests / f"{record.run_id}.json"
    if not manifest_path.exists():
        return None
    manifest = read_manifest(manifest_path)
    path = layout.absolute(manifest["checkpoint"])
    is_whole = path.is_file() and digests.of_file(path) == record.lineage["outputs"].get(manifest["checkpoint"])
    return path if is_whole else None


def _exported_digest(layout: Layout, checkpoint: Path, like: Path) -> str:
    with safe_open(like, framework="pt") as file:
        kind = file.get_slice(next(iter(file.keys()))).get_dtype()
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if kind == "BF16" else "float32"
    with tempfile.TemporaryDirectory(prefix="nexa-reproduce-") as folder:
        export(checkpoint, Path(folder), layout=layout, dtype=dtype)
        return digests.of_file(Path(folder) / EXPORTED_WEIGHTS)
