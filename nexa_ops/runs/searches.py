"""Stopping a whole search: one of its trials alone cannot be stopped, for its next worker would go on with it."""

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core.errors import GateError, UserError
from nexa_core.holder import Holder, ancestors_of
from nexa_core.paths import Layout
from nexa_ops.runs.states import Found, Standing, find_runs, standing_of
from nexa_train.tune.presence import commands_of, forget_gone

SECONDS_BETWEEN_LOOKS = 0.1
TRIAL = re.compile(r"_t\d{3,}_\d{8}_\d{6}(_\d+)?$")
"""How the ids of a search's runs end."""


@dataclass(frozen=True)
class StoppedSearch:
    """A search that no command of this machine works on any more."""

    study: str
    num_commands: int
    elsewhere: tuple[str, ...]
    """Machines whose commands go on."""
    trial: str | None
    """The run that was named, one of its trials."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "state": "interrupted", "elsewhere": list(self.elsewhere)}

    def as_text(self) -> str:
        whose = (
            f"run {self.trial} is a trial of search {self.study}, and its"
            if self.trial
            else f"search {self.study}: its"
        )
        commands = "command has" if self.num_commands == 1 else f"{self.num_commands} commands have"
        said = f"{whose} {commands} ended on this machine; the same nexa tune command goes on from what is saved"
        others = f"\nit goes on on {', '.join(self.elsewhere)}: stop it there" if self.elsewhere else ""
        return f"{said}{others}"


def is_study(layout: Layout, name: str) -> bool:
    return bool(name) and "/" not in name and _folder(layout, name).is_dir()


def search_of(layout: Layout, found: Found) -> str | None:
    """The search that a run is a trial of, by its name and its folder's; None of another run."""
    is_named_so = TRIAL.search(found.run_id) is not None
    return found.experiment if is_named_so and is_study(layout, found.experiment) else None


def study_of(layout: Layout, found: Found, standing: Standing) -> str | None:
    """The search whose command trains a running run, or started the process that does; None of another run."""
    holder = standing.holder
    if holder is None or not holder.is_here:
        return None
    commands = {each.pid for each in commands_of(_folder(layout, found.experiment)) if each.is_here}
    return found.experiment if commands & {holder.pid, *ancestors_of(holder.pid)} else None


def stop_search(
    layout: Layout, study: str, *, now: bool, wait_seconds: float, trial: str | None = None
) -> StoppedSearch:
    """Have the commands of this machine that work on a study finish their steps, save and end; with `now`, end them.

    Raises:
        UserError: there is none.
        GateError: they have not ended in time.
    """
    commands = commands_of(_folder(layout, study))
    here = [each for each in commands if each.is_here]
    elsewhere = tuple(sorted({each.host for each in commands if not each.is_here}))
    if not here:
        where = f"; it goes on on {', '.join(elsewhere)}" if elsewhere else ""
        raise UserError(
            f"There is nothing to stop: no nexa tune command of this machine works on study {study}{where}."
        )
    told = [*here, *(_trained_by(here, layout, study) if now else [])]
    for each in told:  # the commands first: they would report lost workers
        each.tell(signal.SIGKILL if now else signal.SIGTERM)
    until = time.monotonic() + wait_seconds
    while any(each.is_alive for each in told):
        if time.monotonic() > until:
            raise GateError(
                f"Search {study} has been told to end and has not within {wait_seconds:g} s: a step may take longer. "
                f"End it with nexa runs stop --now {study}"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
    forget_gone(_folder(layout, study))
    return StoppedSearch(study, len(here), elsewhere, trial)


def _trained_by(commands: Sequence[Holder], layout: Layout, study: str) -> list[Holder]:
    """The processes that train its trials: those that the commands started, and no other run's in the same folder."""
    standings = [standing_of(each) for each in find_runs(layout) if each.experiment == study]
    holders = [each.holder for each in standings if each and each.state == "running" and each.holder]
    started = {each.pid for each in commands}
    return [each for each in holders if each.is_here and started & {each.pid, *ancestors_of(each.pid)}]


def _folder(layout: Layout, study: str) -> Path:
    return layout.artifacts / "tune" / study
