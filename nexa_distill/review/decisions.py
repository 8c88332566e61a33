"""What people decided about pairs: a journal of JSON lines, of which a pair's last counts."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_distill.review.index import DECISIONS, Index, key_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """A decision that is to be made about a row; `edit` has a completion, and nothing else has."""

    row: int
    row_id: str
    sample_index: int
    request_sha256: str | None
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


def journal_path(layout: Layout, key: str) -> Path:
    """Where the decisions about a dataset of outputs lie."""
    return layout.processed / "distillation" / "reviews" / f"{key}.jsonl"


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
        for value in self._values():
            key = key_of(value["row_id"], value["sample_index"], value.get("request_sha256"))
            row = int(self._index.find(np.array([key], dtype=np.uint64))[0])
            if row < 0:
                strangers += 1
                self._num_lines += 1
            else:
                self._note(row, value["decision"], value.get("completion"))
        if strangers:
            logger.warning(
                "%s: %d lines are about answers that this dataset does not have (of an earlier one); they are left as they are",
                self.path,
                strangers,
            )

    def _values(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._journal.lines(), start=1):
            try:
                value = json.loads(line)
                known = value["decision"] in DECISIONS and isinstance(value["row_id"], str)
                sound = known and (value["decision"] != "edit" or isinstance(value["completion"], str))
                sound = sound and isinstance(value["sample_index"], int)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise UserError(
                    f"{self.path}:{number} is no decision: {line[:80].decode(errors='replace').strip()!r}. A line has row_id, "
                    f"sample_index and decision ({', '.join(DECISIONS)}), an edit its completion. Mend or delete the line."
                )
            yield value
