"""The processes beside a run that send its record on: begun with it, waited for at its end, never for long."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from nexa_core import durable
from nexa_core.errors import Preempted
from nexa_core.paths import PACKAGES
from nexa_core.trackers.destinations import Wanted
from nexa_core.trackers.story import Story

logger = logging.getLogger(__name__)

LOCAL_WAIT_SECONDS = 60.0
"""For what is only written to this machine's disk."""
STOPPED_WAIT_SECONDS = 3.0
"""Where the run was told to end: who did that waits. On a busy machine a follower may take longer to load its client."""


class Followers:
    """A process for each destination, so that a slow or broken one holds up neither the run nor the others.

    A context manager around the run: what ends the block is told to the destinations. Of a run that was told to end they
    are not waited for long: they go on by themselves until their time is up.
    """

    def __init__(self, story: Story, wanted: Sequence[Wanted], *, wait_seconds: float):
        self._story, self._wanted, self._wait_seconds = story, wanted, wait_seconds
        self._running: list[_Follower] = []

    def __enter__(self) -> "Followers":
        for each in self._wanted:
            try:
                self._running.append(_Follower(self._story, each, self._wait_seconds))
            except OSError as error:
                logger.warning("%s is left out: no process for it: %s", each.title, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        word = "finished" if kind is None else "killed" if _was_stopped(kind) else "failed"
        for follower in self._running:
            follower.tell(word)
        began, is_stopped = time.monotonic(), word == "killed"
        lacking = [each.wanted for each in self._running if not each.is_complete(since=began, leaves=is_stopped)]
        if remote := [each.title for each in lacking if each.is_remote]:
            they = " and ".join(remote)
            logger.warning("not all of it is at %s yet: nexa track-sync %s", they, self._story.run_id)
        if any(not each.is_remote for each in lacking):
            how = (
                "gets the end of the TensorBoard events later"
                if is_stopped
                else "lacks the end of the TensorBoard events"
            )
            logger.warning("logs/%s %s", self._story.run_id, how)


class _Follower:
    """A process of `nexa_core.trackers.follower`, in a session of its own, so that Ctrl-C does not end it with the run."""

    def __init__(self, story: Story, wanted: Wanted, wait_seconds: float):
        self.wanted = wanted
        self._lock = story.lock_path(wanted.name)
        self._wait_seconds = wait_seconds if wanted.is_remote else max(wait_seconds, LOCAL_WAIT_SECONDS)
        path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nexa_core.trackers.follower", wanted.name),
                *(str(story.run.path), str(story.layout.root), str(story.after), str(self._wait_seconds)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **wanted.environment, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has given up
            self._process.stdin.write(word.encode())
            self._process.stdin.close()

    def is_complete(self, *, since: float, leaves: bool) -> bool:
        """Whether it has sent everything; it has until its time is up.

        Args:
            leaves: wait less long, and then leave it to end by itself.
        """
        most = min(self._wait_seconds, STOPPED_WAIT_SECONDS) if leaves else self._wait_seconds
        try:
            is_complete = self._process.wait(timeout=max(since + most - time.monotonic(), 0)) == 0
        except subprocess.TimeoutExpired:
            if leaves:
                return False
            is_complete = False
        except KeyboardInterrupt:
            self._end()
            raise
        self._end()
        return is_complete

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listening.join(timeout=1.0)  # its last complaint comes before what is said of the end
        durable.remove_if_left(self._lock)

    def _listen(self) -> None:
        """Pass on what it complains of."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                said = json.loads(line)["complaint"]
                logger.warning("%s: %s. The run goes on; what it missed can be sent later.", self.wanted.title, said)


def _was_stopped(kind: type[BaseException]) -> bool:
    return issubclass(kind, Preempted | KeyboardInterrupt | SystemExit)
