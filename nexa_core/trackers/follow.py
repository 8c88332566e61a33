"""Sending a run's record to a tracker: beside the run while it goes on, and afterwards what it missed."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_core import durable
from nexa_core.trackers.destinations import Destination, Unreachable
from nexa_core.trackers.story import Story

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_TRIES = (2.0, 5.0, 15.0, 60.0)
MAX_BYTES_AT_ONCE = 2**16
SHARE = 0.2
"""Of the time, the most that is spent on sending while the run goes on; what is left over then is sent at its end."""
LONGEST_REST_SECONDS = 15.0
"""After a sending that the network made long, and not the processor."""


class Ending:
    """How the run ended, once it has: finished, failed or killed."""

    def __init__(self, word: str | None = None):
        self._said = threading.Event()
        self.word = ""
        if word is not None:
            self.say(word)

    def say(self, word: str) -> None:
        self.word = word
        self._said.set()

    def is_said(self) -> bool:
        return self._said.is_set()

    def wait(self, seconds: float) -> bool:
        return self._said.wait(seconds)


class Tail:
    """The whole lines of a growing file of JSON lines; not there yet, it has none."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0
        self.is_at_end = True
        """Whether the last reading came to where the file ended."""

    def read(self) -> list[dict[str, Any]]:
        """The next lines, some hundreds at most."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MAX_BYTES_AT_ONCE)
                if b"\n" not in data and len(data) == MAX_BYTES_AT_ONCE:
                    data += file.readline()  # a line of sampled texts may be longer
        except FileNotFoundError:
            return []
        self.is_at_end = len(data) < MAX_BYTES_AT_ONCE
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def follow(
    destination: Destination,
    story: Story,
    *,
    ending: Ending,
    complain: Callable[[str], None] | None,
    begun: Callable[[], None] = lambda: None,
) -> bool:
    """Send until the run has ended; whether everything is sent then.

    Args:
        complain: is told once when the tracker cannot be reached, which is then tried again, a last time
            when the run has ended; without it that is raised.
        begun: is called when the tracker's client has been opened, with all the processes that it has.

    Raises:
        Refused: the tracker says no.
        Unreachable: it cannot be reached, and nobody is to be told.
    """
    with durable.locked(story.lock_path(destination.name)):  # an earlier attempt's follower may still be sending
        stages = _Stages(destination, story, ending, begun)
        num_failures, has_complained = 0, False
        while not stages.are_done:
            is_last_try = ending.is_said()
            try:
                stages.go_on()
                num_failures = 0
            except Unreachable as error:
                if complain is None:
                    raise
                if not has_complained:
                    complain(str(error))
                    has_complained = True
                if is_last_try:
                    return False
                ending.wait(SECONDS_BETWEEN_TRIES[min(num_failures, len(SECONDS_BETWEEN_TRIES) - 1)])
                num_failures += 1
    return True


class _Stages:
    """Beginning, lines, end: each is tried again until it has worked."""

    def __init__(self, destination: Destination, story: Story, ending: Ending, begun: Callable[[], None]):
        self._destination, self._story, self._ending, self._begun = destination, story, ending, begun
        self._record, self._pace = Tail(story.run.step_metrics), Tail(story.pace_path)
        self._lines: list[dict[str, Any]] = []
        self._pace_lines: list[dict[str, Any]] = []
        self._has_begun = self.are_done = False

    def go_on(self) -> None:
        if not self._has_begun:
            self._destination.begin(self._story)
            self._has_begun = True
            self._begun()
        began = time.monotonic()
        is_over = self._ending.is_said()  # asked before reading: what was written until then is read
        self._pace_lines = self._pace_lines or self._pace.read()
        self._lines = self._lines or self._record.read()
        if self._pace_lines:
            self._destination.pace(self._pace_lines)
        if self._lines:
            self._destination.send(self._lines)
        if self._lines or self._pace_lines:
            self._lines, self._pace_lines = [], []
        elif is_over:
            self._destination.finish(self._ending.word)
            self.are_done = True
        if not is_over:
            rest = min((time.monotonic() - began) * (1 / SHARE - 1), LONGEST_REST_SECONDS)
            self._ending.wait(max(rest, SECONDS_BETWEEN_LOOKS if self._record.is_at_end else 0.0))
