"""Sending a run's record to the trackers afterwards: what they missed while it ran, or a run made without them."""

import logging
import os
from dataclasses import asdict, dataclass
from typing import Any

from nexa_core.errors import UserError
from nexa_core.holder import at_rest
from nexa_core.lookup import look_up, unknown
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, is_finished
from nexa_core.trackers import destinations_of
from nexa_core.trackers.destinations import (
    DESTINATIONS,
    SWITCHES,
    Destination,
    Refused,
    Unreachable,
    Wanted,
    in_one_line,
    prepare_clients,
)
from nexa_core.trackers.follow import Ending, follow
from nexa_core.trackers.story import Story
from nexa_ops.runs.states import find_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """What a tracker got."""

    tracker: str
    title: str
    num_values: int
    """Values of curves that it did not have."""
    address: str

    def as_text(self) -> str:
        got = f"{self.num_values:,} values were missing" if self.num_values else "no values were missing"
        return f"{self.title}: {got}; it has all of the run: {self.address}"


@dataclass(frozen=True)
class TrackSync:
    run: RunFolder
    sent: tuple[Sent, ...]

    def as_json(self) -> dict[str, Any]:
        return {"run_id": self.run.run_id, "sent": [asdict(each) for each in self.sent]}

    def as_text(self) -> str:
        return "\n".join([f"run {self.run.run_id}", *(f"  {each.as_text()}" for each in self.sent)])


def track_sync(run_id: str, layout: Layout, *, to: str | None = None) -> TrackSync:
    """Send what MLflow and W&B lack of a run; what they have is not sent again.

    Args:
        to: one of them; without it all that are asked for.

    Raises:
        UserError: there is no such run, it is being written, nobody asks for a tracker, or one does not take it.
    """
    run = find_run(layout, run_id).run
    story = Story(layout, run)
    wanted = _choose(story, to)
    sent, problems = [], []
    with at_rest(run, alone=True) as rests:
        if not rests:
            raise UserError(f"Run {run.run_id} is being written or sent by another process; wait for it.")
        for each in wanted:
            logger.info("sending %s to %s", run.run_id, each.title)
            try:
                sent.append(_send(story, each))
            except (Refused, Unreachable) as error:
                problems.append(f"{each.title}: {in_one_line(str(error))}.")
    if problems:
        raise UserError(" ".join([*problems, *(each.as_text() for each in sent)]))
    return TrackSync(run, tuple(sent))


def _choose(story: Story, to: str | None) -> list[Wanted]:
    if to is not None and to not in SWITCHES:
        raise UserError(unknown("tracker", to, SWITCHES))
    found = destinations_of(os.environ, mlflow_uri=story.config["tracking"].get("mlflow_uri"))
    chosen = [each for each in found if to in (None, each.name)]
    if not chosen:
        switches = [switch for name, switch in SWITCHES.items() if to in (None, name)]
        raise UserError(f"Nobody to send to: set {' or '.join(switches)} in the shell or in .env.local.")
    return chosen


def _send(story: Story, wanted: Wanted) -> Sent:
    os.environ.update(wanted.environment)
    prepare_clients()
    destination: Destination = look_up(DESTINATIONS, wanted.name, what="tracker")()
    ending = Ending("finished" if is_finished(story.layout, story.run) else "killed")
    follow(destination, story, ending=ending, complain=None)
    return Sent(wanted.name, wanted.title, destination.num_sent, destination.address)
