"""Whether a final answer equals the reference: as a number, or by math-verify, in a process that may be ended."""

import contextlib
import logging
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from nexa_core.config.distill_filter import MathCheck
from nexa_core.paths import Layout
from nexa_distill.answers import as_number, final_answer, marked_answer
from nexa_distill.checks import Check, Pair, Rejection
from nexa_distill.checks.reference import reference_of, shown

NO_ANSWER, WRONG, TOO_LONG = "no final answer", "wrong final answer", "not compared in time"


def check_math(settings: MathCheck, layout: Layout) -> Check:
    verifier = Verifier(settings.timeout_seconds)

    def reject(pair: Pair) -> Rejection | None:
        reference = reference_of(pair, settings.reference)
        wanted = marked_answer(reference) or reference
        given = final_answer(pair.completion)
        if given is None:
            return Rejection(NO_ANSWER, shown(pair.completion))
        told = f"{given} instead of {wanted}"
        ours, theirs = as_number(given), as_number(wanted)
        if ours is not None and theirs is not None:  # needs no algebra
            return None if ours == theirs else Rejection(WRONG, told)
        equal = verifier.are_equal(wanted, given)
        if equal is None:
            return Rejection(TOO_LONG, told)
        return None if equal else Rejection(WRONG, told)

    def check(pairs: Sequence[Pair]) -> list[Rejection | None]:
        with verifier:
            return [reject(pair) for pair in pairs]

    return check


class Verifier:
    """math-verify in a process of its own: an expression that it can't get done with is given up, wherever it hangs.

    A context manager; the process begins with the first expression.
    """

    def __init__(self, timeout_seconds: float):
        self._timeout = timeout_seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def are_equal(self, wanted: str, given: str) -> bool | None:
        """Whether two answers are the same; None where that was not found out in time."""
        is_warm = self._pipe is not None
        pipe = self._pipe or self._begin()
        pipe.send((wanted, given))
        if not is_warm and not pipe.poll(60):  # sympy is being imported
            self._end()
            return None
        if pipe.poll(self._timeout):
            with contextlib.suppress(EOFError):
                return bool(pipe.recv())
        self._end()
        return None

    def _begin(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe

    def _end(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.WARNING)  # that it has no timeout: who waits for it has one
    kinds = (LatexExtractionConfig(), ExprExtractionConfig())
    while True:
        try:
            wanted, given = pipe.recv()
        except EOFError:
            return
        parsed = [parse(f"${text}$", extraction_config=kinds, parsing_timeout=None) for text in (wanted, given)]
        pipe.send(bool(parsed[0]) and bool(verify(parsed[0], parsed[1], timeout_seconds=None)))
