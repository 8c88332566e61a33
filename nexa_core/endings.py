"""How a launcher ends, from how its worker processes ended; of torch elastic's errors, but without torch."""

import signal
import traceback
from typing import Any

from nexa_core.errors import GateError, NexaError, NodeError, Preempted, UserError

ENDINGS: dict[int, type[NexaError]] = {
    each.exit_code: each for each in (NexaError, UserError, GateError, NodeError, Preempted)
}
TOLD = (Preempted.exit_code, -signal.SIGTERM)
"""How a worker ends that was told to: it has saved, or had nothing to save that is not saved already."""


def raise_when_told(error: Any) -> None:
    """Raise what a launcher ends with that was told to end; nothing where its workers came to their good end meanwhile.

    Args:
        error: torch elastic's SignalException, raised when it had passed the signal on and waited for the workers.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
        Preempted: all workers ended as they were told to, and so have saved.
        NexaError: one did not; with that one's exit code, or 1 where it was killed.
    """
    if error.sigval == signal.SIGINT:
        raise KeyboardInterrupt from None
    told = f"told to end by {error.sigval.name}"
    codes = _worker_codes(error)
    failed = {rank: code for rank, code in codes.items() if code not in (0, *TOLD)}
    if failed:
        rank, code = next(iter(failed.items()))
        how = (
            f"ended with exit code {code}" if code is not None and code > 0 else "was killed, maybe before it had saved"
        )
        kind = ENDINGS.get(code or 0, NexaError)
        raise kind(f"{told}; worker {rank} of this node {how}; the same command with --resume continues") from None
    if not codes or any(codes.values()):
        raise Preempted(f"{told}, and so were this node's workers; the same command with --resume continues") from None


def _worker_codes(error: Any) -> dict[int, int | None]:
    """How each worker ended, by its rank on this node; none where none had been started.

    Torch elastic tells nobody: its agent, which knows, is to be had from the frames that the error came through.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        workers = getattr(frame.f_locals.get("agent"), "_pcontext", None)
        if workers is not None:
            return {rank: worker.proc.returncode for rank, worker in workers.subprocess_handlers.items()}
    return {}
