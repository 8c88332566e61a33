"""Stopping a run that another process trains, and going on with one that was stopped."""

import signal
from dataclasses import dataclass
from pathlib import Path

from nexa_core.config import RunConfig, load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_ops.runs.follow import look_again, standing_text, wait_for_end
from nexa_ops.runs.searches import StoppedSearch, search_of, stop_search, study_of
from nexa_ops.runs.states import Found, Standing
from nexa_train.finish import TrainingResult
from nexa_train.train import run as train


@dataclass(frozen=True)
class Ended:
    """A run that was stopped."""

    found: Found
    standing: Standing

    def as_json(self) -> dict[str, str | None]:
        said = self.standing.ending.said if self.standing.ending else None
        return {"run_id": self.found.run_id, "state": self.standing.state, "ended": said}

    def as_text(self) -> str:
        return standing_text(self.found, self.standing)


def stop(layout: Layout, found: Found, *, now: bool, wait_seconds: float) -> Ended | StoppedSearch:
    """Have the process that writes to a run finish its step, save and end; with `now`, end it where it is.

    Of a search's trial the whole search: another worker would go on with the trial.

    Raises:
        UserError: it does not run, or its process is on another machine.
        GateError: it has not ended in time.
    """
    standing = look_again(layout, found)
    holder = standing.holder
    if standing.state != "running" or holder is None:
        raise UserError(f"There is nothing to stop: {standing_text(found, standing)}")
    if (study := study_of(layout, found, standing)) is not None:
        return stop_search(layout, study, now=now, wait_seconds=wait_seconds, trial=found.run_id)
    holder.tell(signal.SIGKILL if now else signal.SIGTERM)
    standing = wait_for_end(layout, found, seconds=wait_seconds)
    if standing.state == "running":
        raise GateError(
            f"Run {found.run_id} has been told to end and has not within {wait_seconds:g} s: a step may take longer. "
            f"Wait with nexa runs tail -f {found.run_id}, or end it with nexa runs stop --now {found.run_id}"
        )
    return Ended(found, standing)


def resume(layout: Layout, found: Found, overrides: list[str]) -> TrainingResult:
    """Go on with a run, by its own config and in as many processes as it had, until it is finished.

    Args:
        overrides: of settings that do not decide the run's bytes, as `training.distributed.world_size` of an exact run.

    Raises:
        UserError: it runs, or is finished, or cannot go on.
    """
    standing = look_again(layout, found)
    if standing.state not in ("interrupted", "failed"):
        hint = {
            "partial": "; it was killed before it had begun: start it anew with nexa train",
            "pruned": "; its search gave it up",
        }.get(standing.state, "")
        raise UserError(f"There is nothing to resume: {standing_text(found, standing)}{hint}")
    if (study := search_of(layout, found)) is not None:
        raise UserError(
            f"Run {found.run_id} is a trial of search {study}, which takes it up itself and may give it up: go on with "
            "the same nexa tune command"
        )
    config = load_config(found.run.config, RunConfig, overrides=overrides)
    began_with = standing.holder.config if standing.holder else None
    return train(config, layout=layout, config_path=Path(began_with or found.run.config), resume=found.run_id)
