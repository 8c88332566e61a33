"""One trial: a run with its own values, watched after each validation, and what came out of it."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from nexa_core import digests
from nexa_core.config import RunConfig
from nexa_core.errors import GateError, NexaError, NodeError, Preempted, Stopped, UserError
from nexa_core.holder import Held
from nexa_core.logs import quiet
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_train.finish import TrainingResult
from nexa_train.loop import State
from nexa_train.shelf import Shelf
from nexa_train.start import ChangedInputs
from nexa_train.supervision import Pruned
from nexa_train.train import run
from nexa_train.tune.records import Ending

logger = logging.getLogger(__name__)

OF_VALIDATION = {"val_loss": "loss", "val_accuracy": "accuracy"}
"""The metrics that are measured after each epoch, by their names in a run's history."""

FAILURES = (
    *(NexaError, RuntimeError, MemoryError, ValueError),  # a GPU without room is a RuntimeError
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError),  # of code of the user's own
)
"""What a trial may fail with, so that the search goes on; a disk or a server that is not there fails the search."""


class Watch:
    """The supervisor of a trial."""

    def __init__(self, shelf: Shelf, metric: str, gives_up: Callable[[Sequence[float]], bool]):
        self.shelf = shelf
        self.folder: RunFolder | None = None
        self.reports: tuple[float, ...] = ()
        self._key = OF_VALIDATION.get(metric)
        self._gives_up = gives_up

    def begin(self, folder: RunFolder) -> None:
        self.folder = folder

    def gives_up(self, state: State) -> bool:
        if self._key is None:
            return False
        self.reports = tuple(entry[self._key] for entry in state.history)
        return self._gives_up(self.reports)


def run_trial(
    config: RunConfig,
    *,
    layout: Layout,
    metric: str,
    shelf: Shelf,
    gives_up: Callable[[Sequence[float]], bool],
    resumes: bool,
) -> Ending:
    """Train to the end, or until it is given up or fails.

    Args:
        gives_up: whether to stop, by the metric after each validation so far.
        resumes: whether an earlier worker may have begun it.
    """
    watch, began = Watch(shelf, metric, gives_up), time.monotonic()
    try:
        with quiet(except_for=__name__):
            result = _run(config, layout, watch, resumes)
        ending = _complete(result, config, metric)
    except Pruned as pruned:
        ending = Ending("pruned", watch.reports[-1], reports=watch.reports, reason=str(pruned), step=pruned.step)
        found = [] if watch.folder is None else list(_validations(watch.folder))
        low, high = _ends(found, metric, len(watch.reports) - 1)
        ending = replace(ending, low=low, high=high)
    except (Held, NodeError, Preempted, Stopped):  # which says nothing of the trial
        raise
    except FAILURES as error:
        ending = Ending("failed", None, reports=watch.reports, reason=f"{_kind(error)}{error}".strip())
    return _placed(ending, layout, watch, time.monotonic() - began)


def _run(config: RunConfig, layout: Layout, watch: Watch, resumes: bool) -> TrainingResult:
    try:
        return run(config, layout=layout, resume=resumes, supervisor=watch)
    except ChangedInputs as error:
        logger.warning("%s The trial begins anew.", error)
        return run(config, layout=layout, supervisor=watch)


def _complete(result: TrainingResult, config: RunConfig, metric: str) -> Ending:
    reports: tuple[float, ...] = ()
    if metric not in OF_VALIDATION:
        value = result.manifest["metrics"].get(metric)
        scored = result.metrics["metrics"].get(metric, {})
        low, high = scored.get("low"), scored.get("high")
    else:
        found = list(_validations(result.run))
        reports = tuple(each[metric] for each in found)
        losses = [each["val_loss"] for each in found]
        kept = losses.index(min(losses)) if config.training.keep == "best" and losses else len(losses) - 1
        value = reports[kept] if reports else None
        low, high = _ends(found, metric, kept)
    if value is None or not math.isfinite(value):
        there = ", ".join(sorted(result.manifest["metrics"]))
        raise UserError(f"The run has no {metric}; it has: {', '.join(OF_VALIDATION)}, {there}")
    ending = Ending("complete", value, reports=reports, run_id=result.run.run_id, run_dir=result.manifest["run_dir"])
    return replace(ending, low=low, high=high)


def _validations(run_folder: RunFolder) -> Iterator[dict[str, float]]:
    """What the run wrote down after each validation; all of it, also where it was interrupted."""
    with run_folder.step_metrics.open(encoding="utf-8") as lines:
        for line in lines:
            if '"val_loss"' in line and "val_loss" in (values := json.loads(line)):
                yield values


def _ends(found: Sequence[dict[str, float]], metric: str, index: int) -> tuple[float | None, float | None]:
    """The ends of the metric's interval at one of the validations."""
    values = found[index] if 0 <= index < len(found) else {}
    return values.get(f"{metric}_low"), values.get(f"{metric}_high")


def _placed(ending: Ending, layout: Layout, watch: Watch, seconds: float) -> Ending:
    folder = watch.folder
    found = {"run_id": ending.run_id, "run_dir": ending.run_dir}
    if folder is not None:
        found = {"run_id": folder.run_id, "run_dir": layout.relative(folder.path)}
    return Ending(**{**vars(ending), **found, "seconds": round(seconds, 3), "code": _code()})


def _kind(error: Exception) -> str:
    return "" if isinstance(error, GateError | UserError) else f"{type(error).__name__}: "


@cache
def _code() -> str:
    return digests.of_code()
