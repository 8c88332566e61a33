"""math-verify in a process of its own: an expression that it can't get done with is given up, wherever it hangs."""

import logging
import multiprocessing
import resource
import signal
import weakref
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from nexa_core.errors import NexaError

logger = logging.getLogger(__name__)

TOO_LONG, BROKEN = "not compared in time", "could not be compared"
START_SECONDS = 120.0
"""For the import of sympy on a busy machine."""
MAX_BYTES = 4 << 30
"""Of memory: a tower of powers would take all there is."""


class Verifier:
    """Compares expressions, in a process that begins with the first of them and ends with this object.

    math-verify's own time limits are alarms, which only work in a main thread and not inside of long integer arithmetic;
    they are off, and its whole process is ended instead.
    """

    def __init__(self, timeout_seconds: float):
        self._timeout_seconds = timeout_seconds
        self._pipe: Connection | None = None
        self._end: weakref.finalize[..., Verifier] | None = None

    def difference(self, wanted: str, given: str | None, *, told: str) -> str | None:
        """None where two answers are the same; else `told`, or why that was not found out. Without `given`: whether it is math.

        Raises:
            NexaError: the process can't be started.
        """
        pipe = self._pipe or self._begin()
        try:
            pipe.send((wanted, given))
            if pipe.poll(self._timeout_seconds):
                return None if pipe.recv() else told
            problem = TOO_LONG
        except (EOFError, OSError):  # it is dead: out of memory, or killed from outside
            problem = BROKEN
        self.close()
        return problem

    def close(self) -> None:
        """End the process; the next expression begins another one."""
        if self._end is not None:
            self._end()
        self._pipe = self._end = None

    def _begin(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._timeout_seconds), daemon=True)
        process.start()
        theirs.close()
        self._end = weakref.finalize(self, _kill, process, self._pipe)
        try:
            if self._pipe.poll(START_SECONDS) and self._pipe.recv():
                return self._pipe
        except (EOFError, OSError):
            pass
        self.close()
        raise NexaError("math-verify's process could not be started; what it said stands above.")


def _kill(process: BaseProcess, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()


def _serve(pipe: Connection, timeout_seconds: float) -> None:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.WARNING)  # that it has no timeout: who waits for it has one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this process
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    kinds = (LatexExtractionConfig(), ExprExtractionConfig())
    pipe.send(True)
    while True:
        try:
            wanted, given = pipe.recv()
        except EOFError:
            return
        signal.setitimer(
            signal.ITIMER_REAL, 2 * timeout_seconds + 1
        )  # its default ends a process whose parent was killed
        fallback = "no_fallback" if given is None else "first_match"
        one, other = (
            parse(f"${text}$", extraction_config=kinds, fallback_mode=fallback, parsing_timeout=None)
            for text in (wanted, wanted if given is None else given)
        )
        is_same = bool(one) and bool(verify(one, other, timeout_seconds=None))
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(is_same)
