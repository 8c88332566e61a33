"""A review: pairs to look at, through a view of some of them, and the decisions about them."""

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.paths import Layout
from nexa_distill.outputs import FOLDER
from nexa_distill.places import place_of, require_file
from nexa_distill.review.decisions import Change, Decisions
from nexa_distill.review.index import KEPT, KEY_COLUMNS, UNKNOWN, add_verdicts, make_index
from nexa_distill.review.pairs import PairFile, Row
from nexa_distill.review.verdicts import find_filtered
from nexa_distill.review.views import View, choices, first_of, left_of, moved, rows_of
from nexa_distill.reviews import DECISIONS, reviews_path

logger = logging.getLogger(__name__)

MAKE = "nexa collect-teacher"
SHOWN = (
    *("row_id", "sample_index", "prompt", "completion", "status", "error", "finish_reason", "teacher", "model"),
    *("prompt_tokens", "completion_tokens", "cost_usd", "latency_seconds", "request_sha256", "extra_json"),
)
REQUIRED = (*KEY_COLUMNS, "prompt", "completion")
MOST_SAMPLES = 12
"""Of one prompt that are shown together."""


class Conflict(Exception):
    """What was to be changed is no longer what the page showed."""


@dataclass(frozen=True)
class Progress:
    """How many pairs there are, and how many were decided how."""

    total: int
    accepted: int
    rejected: int
    edited: int

    @property
    def left(self) -> int:
        return self.total - self.accepted - self.rejected - self.edited

    def as_json(self) -> dict[str, int]:
        return {**vars(self), "left": self.left}


class Review:
    """The review of a dataset of teacher outputs; its methods may be called from several threads.

    Args:
        given: the dataset's key, or the path of a Parquet file.
        filtered: the key of the dataset that a filter made of it; without it the newest, if there is one.

    Raises:
        UserError: there is no such dataset, or another process reviews it.
    """

    def __init__(self, layout: Layout, given: str, *, filtered: str | None = None):
        place = place_of(layout, given, FOLDER)
        require_file(layout, place, FOLDER, make=MAKE)
        self.key = place.key
        self._filtered = find_filtered(layout, place, filtered)
        self._outputs = PairFile(place.path, SHOWN, required=REQUIRED)
        self._index = make_index(self._outputs)
        self._rejected = self._add_verdicts(is_wanted=filtered is not None)
        self._lock, self._search_lock = threading.Lock(), threading.Lock()
        self._wanted: str | None = ""
        self._searched: tuple[str, np.ndarray | None] = ("", None)
        self._backs: list[list[Change]] = []
        """For each action of this session, what takes it back."""
        self._decisions = Decisions(reviews_path(layout, place.key), self._index)
        self.path = self._decisions.path

    def end_searches(self) -> None:
        """End a search that goes on, because nobody waits for it any more."""
        self._wanted = None

    def close(self) -> None:
        """Let go of the journal, when what is being written is written."""
        with self._lock:
            self._decisions.close()

    @property
    def is_filtered(self) -> bool:
        """Whether a filter has looked at these pairs."""
        return self._filtered is not None

    @property
    def progress(self) -> Progress:
        counts = np.bincount(self._index.decisions, minlength=len(DECISIONS))
        return Progress(len(self._index), *counts[1:].tolist())

    def choices(self) -> list[dict[str, Any]]:
        """What a view can show."""
        return choices(self._index, None if self._filtered is None else self._filtered.key)

    def show(self, view: View, row: int | None, move: str) -> dict[str, Any]:
        """The pair at `row`, or where one gets from it by `move`, and where it stands among those of the view.

        Args:
            row: None for the first of the view that nobody has decided on, else the view's first.

        Raises:
            UserError: there is no such view, row or move.
            Conflict: another search ended this one.
        """
        if row is not None and not 0 <= row < len(self._index):
            raise UserError(f"There is no row {row}; there are {len(self._index):,}, from 0 on.")
        found = self._search(view.text) if view.text else None
        with self._lock:
            rows = rows_of(view, self._index, None if found is None else found | self._edited_to(view.text))
            at = first_of(rows, self._index) if row is None else moved(rows, self._index, row, move)
            left = left_of(rows, self._index)
            about = {
                "row": at,
                "matching": len(rows),
                "left": len(left),
                "first_left": int(left[0]) if len(left) else None,
                "progress": self.progress.as_json(),
            }
            if at is None:
                return about
            place = int(np.searchsorted(rows, at))
            is_seen = place < len(rows) and int(rows[place]) == at
            return {**about, "position": place + 1 if is_seen else None, **self._pair(at)}

    def decide(self, wishes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write down decisions {"row", "decision", "completion", "version"}, all or none; on the disk when this returns.

        Raises:
            UserError: one is no decision, or can't be made of this pair.
            Conflict: the pair has another version than the one that was looked at.
            OSError: they could not be written.
        """
        with self._lock:
            changes = [self._change(wish) for wish in wishes]
            back = [self._as_it_is(change) for change in changes]
            self._decisions.decide(changes)
            self._backs.append(back)
            return {"row": changes[0].row, "progress": self.progress.as_json()}

    def undo(self) -> dict[str, Any]:
        """Take the last decisions of this session back, by new lines that say what was true before.

        Raises:
            Conflict: there is none.
            OSError: it could not be written.
        """
        with self._lock:
            if not self._backs:
                raise Conflict("There is nothing to undo: no decision since this review was started.")
            self._decisions.decide(self._backs[-1])
            return {"row": self._backs.pop()[0].row, "progress": self.progress.as_json()}

    def _add_verdicts(self, *, is_wanted: bool) -> PairFile | None:
        if self._filtered is None:
            return None
        kept_path, rejected_path = self._filtered.kept_path, self._filtered.rejected_path
        kept = None if kept_path is None else PairFile(kept_path, (), required=KEY_COLUMNS)
        rejected = PairFile(rejected_path, ("step", "reason", "detail"), required=(*KEY_COLUMNS, "step", "reason"))
        if add_verdicts(self._index, kept, rejected):
            return rejected
        told = f"{self._filtered.key} was made of other answers than those that {self.key} has now: nexa filter-pairs"
        if is_wanted:
            raise UserError(told)
        logger.warning("%s makes it anew; the verdicts of then are not shown", told)
        self._filtered = None
        return None

    def _search(self, text: str) -> np.ndarray:
        """Whether each row has `text`; the last search is remembered, and a later one ends an earlier one."""
        self._wanted = text
        with self._search_lock:
            if self._searched[0] != text or self._searched[1] is None:
                found = self._outputs.search(text, go_on=lambda: self._wanted == text)
                if found is None:
                    raise Conflict("Another search has begun.")
                self._searched = (text, found)
            return self._searched[1]  # type: ignore[return-value]  # it has just been set

    def _edited_to(self, text: str) -> np.ndarray:
        mask = np.zeros(len(self._index), dtype=bool)
        mask[[row for row, edit in self._decisions.edits.items() if text.casefold() in edit.casefold()]] = True
        return mask

    def _change(self, wish: dict[str, Any]) -> Change:
        row, decision, completion = wish.get("row"), wish.get("decision"), wish.get("completion")
        if not isinstance(row, int) or not 0 <= row < len(self._index):
            raise UserError(f"There is no row {row!r}.")
        if decision not in DECISIONS:
            raise UserError(unknown("decision", str(decision), DECISIONS))
        if (decision == "edit") != isinstance(completion, str):
            raise UserError("An edit, and nothing else, comes with a completion.")
        if isinstance(completion, str):
            _check_completion(completion)
        pair = self._outputs.read(row, row + 1)[0]
        if decision == "accept" and not (pair["completion"] or "").strip():
            raise UserError("There is no answer to accept. Write one with edit, or reject the pair.")
        if wish.get("version") != int(self._index.versions[row]):
            raise Conflict("This pair was decided on in another window meanwhile. Here it is as it is now.")
        return Change(row, pair["row_id"], pair["sample_index"], pair["request_sha256"], decision, completion)

    def _as_it_is(self, change: Change) -> Change:
        decision = DECISIONS[self._index.decisions[change.row]]
        completion = self._decisions.edits.get(change.row)
        return Change(change.row, change.row_id, change.sample_index, change.request_sha256, decision, completion)

    def _pair(self, row: int) -> dict[str, Any]:
        begin, end = self._index.samples(row)
        first = begin + (row - begin) // MOST_SAMPLES * MOST_SAMPLES
        rows = range(first, min(end, first + MOST_SAMPLES))
        pairs = self._outputs.read(rows.start, rows.stop)
        return {
            "row_id": pairs[0]["row_id"],
            "prompt": pairs[0]["prompt"],
            "extra": _extra(pairs[row - first].get("extra_json")),
            "num_samples": end - begin,
            "samples": [self._sample(number, pair) for number, pair in zip(rows, pairs, strict=True)],
        }

    def _sample(self, row: int, pair: Row) -> dict[str, Any]:
        shown = {name: value for name, value in pair.items() if name not in ("row_id", "prompt", "extra_json")}
        return {
            **shown,
            "row": row,
            "decision": DECISIONS[self._index.decisions[row]],
            "edited": self._decisions.edits.get(row),
            "version": int(self._index.versions[row]),
            "verdict": self._verdict(row),
        }

    def _verdict(self, row: int) -> dict[str, Any] | None:
        reason, at = int(self._index.reasons[row]), int(self._index.rejected_rows[row])
        if reason == UNKNOWN or self._rejected is None:
            return None
        return {"kept": True} if reason == KEPT else {"kept": False, **self._rejected.read(at, at + 1)[0]}


def _extra(text: str | None) -> dict[str, str]:
    """What else is known of a prompt, by name; nested values as JSON."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = text
    named = value if isinstance(value, dict) else {"extra": value}
    return {
        name: each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for name, each in named.items()
    }


def _check_completion(text: str) -> None:
    if not text.strip():
        raise UserError("An empty completion teaches nothing; reject the pair instead.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            "The completion has half of a character in it (a lone surrogate), which no file can hold."
        ) from None
