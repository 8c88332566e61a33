"""A training process that is told to end (SIGTERM, Ctrl-C): its step is finished and saved before it does."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from nexa_core.command import was_interrupted
from nexa_core.endings import STOPPED_AT_ONCE
from nexa_core.errors import Interrupted, Preempted
from nexa_train.distributed.group import Group, Pending
from nexa_train.loop import Hook, State, StepResult

logger = logging.getLogger(__name__)

TOLD = (signal.SIGTERM, signal.SIGINT)
KINDS: tuple[type[Preempted], ...] = (Preempted, Interrupted)
"""How a run ends by each of these; where processes were told differently, the later one in this row counts."""
SHOW_CURSOR = b"\x1b[?25h"
"""For a terminal: the progress bar hides it."""


class Preemption:
    """Ends a run whose process was told to: the step is finished, the state saved, the exit code 143, or 130 by Ctrl-C.

    The processes ask each other, so that all of them stop after the same step. SIGTERM again changes nothing, nor does
    Ctrl-C again in one of several processes, whose launcher decides; alone, the second Ctrl-C stops at once.
    """

    def __init__(self, group: Group):
        self._group = group
        self._told = 0
        self._asked: Pending | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in TOLD}
            if was_interrupted():
                self._told = max(self._told, 1 + TOLD.index(signal.SIGINT))
            if self._group.world.is_alone:
                self._listening.enter_context(_Interrupts())
        return self

    def obey(self, save: Callable[[State], None]) -> Hook:
        """A hook that ends the run, saved by `save`, after the step in which a process was told to."""

        def stop_when_told(state: State, result: StepResult) -> None:
            if told := self._asked_before():
                save(state)
                raise self._ending(told, state)

        return stop_when_told

    def obey_last(self, state: State) -> None:
        """Raise likewise after the last step, saved already, where a process was told to end meanwhile."""
        if told := self._asked_before() or self._asked_before():  # the second answers what has been asked since
            raise self._ending(told, state)

    def _asked_before(self) -> int:
        """What all of them know of being told: alone, all there is to know, and else what the step before this began to ask."""
        if self._group.world.is_alone:
            return self._told
        told = 0 if self._asked is None else self._asked.wait()
        self._asked = None if told else self._group.begin_any(self._told)
        return told

    def _ending(self, told: int, state: State) -> Preempted:
        kind = KINDS[told - 1]
        how = "interrupted" if kind is Interrupted else "told to end"
        said = f"{how}: step {state.step} is finished and saved; the same command with --resume continues there"
        if self._group.world.is_alone:
            return kind(said)
        if self._group.world.is_main:
            logger.info("%s", said)
        return kind("")  # the launcher has the last word

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        if self._asked is not None and error is None:
            self._asked.wait()
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if isinstance(error, Preempted) else before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # And no word: the signal may have come in the middle of one.
        self._told = max(self._told, 1 + TOLD.index(signal.Signals(number)))


class _Interrupts:
    """Answers Ctrl-C from a thread, at once, whatever the main thread is computing: a word, and the second time the end."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._before = -1
        self._thread = threading.Thread(target=self._listen, name="interrupts", daemon=True)

    def __enter__(self) -> None:
        self._theirs.setblocking(False)
        self._before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def _listen(self) -> None:
        num_interrupts = 0
        while received := self._ours.recv(1):
            if received[0] == signal.SIGINT:
                num_interrupts += 1
                if num_interrupts > 1:
                    _stop_now()
                logger.info("interrupted: finishing the step and saving it; Ctrl-C again stops at once")


def _stop_now() -> None:
    """End without a look back, as a power cut would; every file is written so that none is there in part."""
    if sys.stderr.isatty():
        os.write(2, b"\n" + SHOW_CURSOR)
    os.write(2, f"error: {STOPPED_AT_ONCE}\n".encode())
    os._exit(Interrupted.exit_code)
