"""Which pairs are looked at, and how one gets from one to another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_distill.review.index import KEPT, UNKNOWN, Index

STATES = ("any", "unreviewed", "reviewed", "accepted", "rejected", "edited")
MOVES = ("stay", "next", "previous", "next-prompt", "previous-prompt")


@dataclass(frozen=True)
class View:
    """Some of the pairs: `show` by status or the filter's verdict, `state` by decision, `text` by what they say."""

    show: str = "all"
    state: str = "any"
    text: str = ""


def rows_of(view: View, index: Index, has_text: np.ndarray | None) -> np.ndarray:
    """The rows of a view, in order.

    Args:
        has_text: whether each row has the view's text; None where it has none.

    Raises:
        UserError: there is no such view.
    """
    mask = _shown(view.show, index) & _in_state(view.state, index)
    return np.flatnonzero(mask if has_text is None else mask & has_text)


def first_of(rows: np.ndarray, index: Index) -> int | None:
    """The first row that nobody has decided on, else the first."""
    left = left_of(rows, index)
    return int(left[0]) if len(left) else int(rows[0]) if len(rows) else None


def left_of(rows: np.ndarray, index: Index) -> np.ndarray:
    """Those of the rows that nobody has decided on."""
    return rows[index.decisions[rows] == 0]


def moved(rows: np.ndarray, index: Index, row: int, move: str) -> int | None:
    """Where one gets from `row`, which need not be among them, within `rows`; None where there is nothing further.

    Raises:
        UserError: there is no such move.
    """
    begin, end = index.samples(row)
    if move == "stay":
        return row
    if move in ("next", "next-prompt"):
        place = int(np.searchsorted(rows, row + 1 if move == "next" else end))
        return int(rows[place]) if place < len(rows) else None
    if move in ("previous", "previous-prompt"):
        place = int(np.searchsorted(rows, row if move == "previous" else begin)) - 1
        if place >= 0 and move == "previous-prompt":
            place = int(np.searchsorted(rows, index.samples(int(rows[place]))[0]))  # its first that is in view
        return int(rows[place]) if place >= 0 else None
    raise UserError(unknown("move", move, MOVES))


def choices(index: Index, filtered: str | None) -> list[dict[str, Any]]:
    """Everything that a view can show: {"value", "group", "name", "count"}.

    Args:
        filtered: the key of the dataset that a filter made; None where none has run.
    """
    found = [_choice("all", "", "all pairs", len(index))]
    if filtered is not None:
        group, counts = f"filter {filtered}", np.bincount(index.reasons, minlength=len(index.reason_names))
        found += [_choice("kept", group, "kept", counts[KEPT])]
        found += [_choice("rejected", group, "rejected", counts[KEPT + 1 :].sum())]
        found += [_choice("unseen", group, "not filtered", counts[UNKNOWN])] * bool(counts[UNKNOWN])
        found += sorted(_reasons(index, counts), key=lambda choice: -choice["count"])
    if len(index.status_names) > 1:
        counts = np.bincount(index.statuses, minlength=len(index.status_names))
        names = zip(index.status_names, counts, strict=True)
        found += [_choice(f"status:{name}", "the teacher's status", name, count) for name, count in names]
    return found


def _reasons(index: Index, counts: np.ndarray) -> list[dict[str, Any]]:
    return [
        _choice(f"reason:{number}", "rejected by", ": ".join(filter(None, name)), counts[number])
        for number, name in enumerate(index.reason_names)
        if number > KEPT
    ]


def _choice(value: str, group: str, name: str, count: int) -> dict[str, Any]:
    return {"value": value, "group": group, "name": name, "count": int(count)}


def _shown(show: str, index: Index) -> np.ndarray:
    tests: dict[str, Callable[[], np.ndarray]] = {
        "all": lambda: np.ones(len(index), dtype=bool),
        "kept": lambda: index.reasons == KEPT,
        "rejected": lambda: index.reasons > KEPT,
        "unseen": lambda: index.reasons == UNKNOWN,
    }
    if show in tests:
        return tests[show]()
    kind, _, name = show.partition(":")
    if kind == "reason" and name.isdecimal() and KEPT < int(name) < len(index.reason_names):
        return index.reasons == int(name)
    if kind == "status" and name in index.status_names:
        return index.statuses == index.status_names.index(name)
    raise UserError(unknown("view", show, (*tests, "status:<status>", "reason:<number>")))


def _in_state(state: str, index: Index) -> np.ndarray:
    if state not in STATES:
        raise UserError(unknown("state", state, STATES))
    if state == "any":
        return np.ones(len(index), dtype=bool)
    if state == "reviewed":
        return index.decisions != 0
    return index.decisions == ("unreviewed", "accepted", "rejected", "edited").index(state)
