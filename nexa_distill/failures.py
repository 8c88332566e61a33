"""Requests that were given up: how many of them end a run, and what is said of the others."""

import logging

from nexa_core.errors import GateError
from nexa_distill.outputs import Tally
from nexa_llm.chat import Answer

logger = logging.getLogger(__name__)

FEWEST_JUDGED = 50
"""Answers before a share of them is held against a limit."""
FEWEST_FAILED = 10
"""Failures that end a run before its end; fewer may be all that there are."""
NUM_SHOWN = 3


class Failures:
    """Those among a run's answers.

    Args:
        at_most: the share of all answers that may fail.
    """

    def __init__(self, at_most: float):
        self._at_most = at_most
        self._shown: list[str] = []

    def saw(self, row_id: str, answer: Answer, tally: Tally) -> None:
        """Look at the newest answer, which `tally` has counted.

        Raises:
            GateError: too many have failed so far.
        """
        if answer.status != "failed":
            return
        if len(self._shown) < NUM_SHOWN:
            self._shown.append(f"{row_id}: {answer.error}")
        if tally.statuses["failed"] >= FEWEST_FAILED and tally.num_rows >= FEWEST_JUDGED:
            self._require_few(tally)

    def judge(self, tally: Tally) -> None:
        """Look at all of them, at the end.

        Raises:
            GateError: too many have failed.
        """
        self._require_few(tally)
        if failed := tally.statuses["failed"]:
            some = "; ".join(self._shown)
            logger.warning(
                "%d of %d answers failed, e.g. %s; --replace asks for them again", failed, tally.num_rows, some
            )

    def _require_few(self, tally: Tally) -> None:
        failed, total = tally.statuses["failed"], tally.num_rows
        if failed > self._at_most * total:
            raise GateError(
                f"{failed:,} of {total:,} answers failed, more than max_failed_share: {self._at_most:g}; e.g. "
                f"{'; '.join(self._shown)}. The others are kept; the same command asks only for those that failed."
            )
