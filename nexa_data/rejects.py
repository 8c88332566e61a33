"""Rows that were left out: each one written down with its reason, counted, and held against the limit."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nexa_core import durable
from nexa_core.errors import GateError
from nexa_core.redact import known_secrets
from nexa_data.sources.raw import BadRow

NUM_REASONS_SHOWN = 3


class Rejects:
    """Writes a JSON line for each row left out, and counts the reasons of each step."""

    def __init__(self, file: BinaryIO):
        self._file, self._secrets = file, known_secrets()
        self.reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._first: dict[str, BadRow] = {}
        """The first row of each reason."""

    def add(self, step: str, row: BadRow, *, kept: str = "") -> None:
        """Write down a row that `step` leaves out.

        Args:
            kept: the id of the row that is kept in its place.
        """
        self.reasons[step][row.reason] += 1
        self._first.setdefault(row.reason, row)
        reason = f"{row.reason} of {kept}" if kept else row.reason
        reason = f"{reason}: {row.detail}" if row.detail else reason
        place = {"file": row.file, "line": row.line, "offset": row.offset}
        shown = reason.encode("utf-8", "backslashreplace").decode("utf-8")  # a detail may quote half a surrogate pair
        self._file.write(durable.json_line({**place, "reason": shown, "raw": row.raw}, self._secrets))

    def num_in(self, step: str) -> int:
        return self.reasons[step].total()

    @property
    def num_bad(self) -> int:
        return self.num_in("read") + self.num_in("normalise")

    @property
    def num_rows(self) -> int:
        return sum(reasons.total() for reasons in self.reasons.values())

    def check(self, num_read: int, limit: float) -> None:
        """Hold the share of bad rows against its limit.

        Raises:
            GateError: there are too many, or no good ones at all.
        """
        if num_read == self.num_bad:
            raise GateError(f"there is no good row among {num_read} read. {self._commonest()}")
        if self.num_bad / num_read > limit:
            share = f"{self.num_bad} of {num_read} rows are bad ({self.num_bad / num_read:.2%})"
            raise GateError(f"{share}, max_bad_fraction allows {limit:.2%}. {self._commonest()}")

    def _commonest(self) -> str:
        reasons = self.reasons["read"] + self.reasons["normalise"]
        commonest = _ordered(reasons)[:NUM_REASONS_SHOWN]
        if not commonest:
            return "Nothing was there."
        shown = ", ".join(f"{count}x {reason}" for reason, count in commonest)
        first = self._first[commonest[0][0]]
        place = first.file if first.line is None else f"{first.file}, line {first.line}"
        return f"Most often: {shown}. The first: {place}{f': {first.detail}' if first.detail else ''}."


@contextmanager
def rejects_at(path: Path, dataset: str) -> Iterator[Rejects]:
    """A new rejects file, which stays even when the block ends with a `GateError`, so that the user can look at it."""
    refusal: GateError | None = None
    with durable.create(path) as file:
        try:
            yield Rejects(file)
        except GateError as error:
            refusal = GateError(f"{dataset}: {error} Each row that was left out is in {path}")
    if refusal is not None:
        raise refusal


def counts(reasons: Counter[str]) -> dict[str, int]:
    """Reasons with their counts, the commonest first."""
    return dict(_ordered(reasons))


def _ordered(reasons: Counter[str]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
