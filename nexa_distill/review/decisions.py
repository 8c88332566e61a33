"""What people decided about pairs: a journal of JSON lines, of which a pair's last counts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_distill.review.index import Index, key_of
from nexa_distill.reviews import DECISIONS, parse_reviews

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """A decision that is to be made about a row; `edit` has a completion, and nothing else has."""

    row: int
    row_id: str
    sample_index: int
    request_sha256: str
    decision: str
    completion: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "row_id": self.row_id,
            "sample_index": self.sample_index,
            "decision": self.decision,
            **({"completion": self.completion} if self.decision == "edit" else {}),
            "request_sha256": self.request_sha256,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }


class Decisions:
    """The journal at `path`, open for this process alone; `index` knows what it says of each row.

    Raises:
        UserError: another process has it open, or a line of it is no decision.
    """

    def __init__(self, path: Path, index: Index):
        self.path = path
        self.edits: dict[int, str] = {}
        self._index = index
        try:
            self._journal = durable.Journal(path)
        except BlockingIOError:
            raise UserError(
                f"Another `nexa review` has {path} open. Go on in its page, or end it with Ctrl-C where it runs."
            ) from None
        if self._journal.cut_bytes:
            logger.warning("%s: its last line had been cut off by a kill or a crash; it is removed", path)
        self._num_lines = 0
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def decide(self, changes: Sequence[Change]) -> None:
        """Write decisions down; when this returns they are on the disk.

        Raises:
            OSError: they could not be written, and none is.
        """
        self._journal.append(change.as_json() for change in changes)
        for change in changes:
            self._note(change.row, change.decision, change.completion)

    def close(self) -> None:
        self._journal.close()

    def _note(self, row: int, decision: str, completion: str | None) -> None:
        self._num_lines += 1
        self._index.decisions[row] = DECISIONS.index(decision)
        self._index.versions[row] = self._num_lines
        self.edits.pop(row, None)
        if decision == "edit" and completion is not None:
            self.edits[row] = completion

    def _read(self) -> None:
        strangers = 0
        for answered, review in parse_reviews(self.path, self._journal.lines()):
            row = int(self._index.find(np.array([key_of(*answered)], dtype=np.uint64))[0])
            if row < 0:
                strangers += 1
                self._num_lines += 1
            else:
                self._note(row, review.decision, review.completion)
        if strangers:
            logger.warning(
                "%s: %d lines are about answers that this dataset does not have (of an earlier one); they are left as they are",
                self.path,
                strangers,
            )
