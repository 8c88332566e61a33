"""How a launcher ends, from how its worker processes ended; of torch elastic's errors, but without torch."""

import os
import signal
import threading
import traceback
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

from nexa_core.errors import GateError, Interrupted, NexaError, NodeError, Preempted, UserError

ENDINGS: dict[int, type[NexaError]] = {
    each.exit_code: each for each in (NexaError, UserError, GateError, NodeError, Preempted, Interrupted)
}
TOLD = (Preempted.exit_code, Interrupted.exit_code, -signal.SIGTERM, -signal.SIGINT)
"""How a worker ends that was told to: it has saved, or had nothing to save that is not saved already."""


HANDLED_SIGNALS = "SIGTERM,SIGHUP,SIGQUIT"
"""What torch elastic may take over: of Ctrl-C it would make the same however often it comes."""
STOPPED_AT_ONCE = "stopped at once; the same command with --resume continues from the newest checkpoint"


class Interrupts:
    """What Ctrl-C does to a launcher: the first is passed on to the workers, which save, and the second kills them."""

    def __init__(self, passed_on: type[Exception]) -> None:
        """`passed_on` is torch elastic's SignalException."""
        self._passed_on = passed_on
        self._count = 0
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._count > 1 and error is not None:
            raise Interrupted(STOPPED_AT_ONCE) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            os.write(2, b"interrupted: the processes finish their step and save it; Ctrl-C again stops at once\n")
            raise self._passed_on("Ctrl-C", signal.SIGINT)
        workers = _workers(_frames_around(frame))
        if not workers:
            raise KeyboardInterrupt
        for worker in workers.values():
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)  # each leads a group, of what it has started itself


def raise_when_told(error: Any) -> None:
    """Raise what a launcher ends with that was told to end; nothing where its workers came to their good end meanwhile.

    Args:
        error: torch elastic's SignalException, raised when it had passed the signal on and waited for the workers.

    Raises:
        Preempted: all workers ended as they were told to, and so have saved; Interrupted where it was Ctrl-C.
        NexaError: one did not; with that one's exit code, or 1 where it was killed.
    """
    is_interrupt = error.sigval == signal.SIGINT
    told = "interrupted" if is_interrupt else f"told to end by {error.sigval.name}"
    codes = {rank: worker.poll() for rank, worker in _workers(_frames_of(error)).items()}
    failed = {rank: code for rank, code in codes.items() if code not in (0, *TOLD)}
    if failed:
        rank, code = next(iter(failed.items()))
        how = (
            f"ended with exit code {code}" if code is not None and code > 0 else "was killed, maybe before it had saved"
        )
        kind = ENDINGS.get(code or 0, Interrupted if is_interrupt else NexaError)
        raise kind(f"{told}; worker {rank} of this node {how}; the same command with --resume continues") from None
    if not codes or any(codes.values()):
        ended = "so were this node's workers; the same command with --resume continues"
        raise (Interrupted if is_interrupt else Preempted)(f"{told}, and {ended}") from None


def _workers(frames: Iterable[FrameType]) -> dict[int, Any]:
    """The worker processes by their rank on this node; none where none had been started.

    Torch elastic tells nobody of them: its agent, which knows, is to be had from the frames that it runs in.
    """
    for frame in frames:
        workers = getattr(frame.f_locals.get("agent"), "_pcontext", None)
        if workers is not None:
            return {rank: worker.proc for rank, worker in workers.subprocess_handlers.items()}
    return {}


def _frames_of(error: BaseException) -> Iterable[FrameType]:
    return (frame for frame, _ in traceback.walk_tb(error.__traceback__))


def _frames_around(frame: FrameType | None) -> Iterable[FrameType]:
    return (each for each, _ in traceback.walk_stack(frame))
