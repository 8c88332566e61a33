"""What was paid for some answers, by the ledger: with the calls that were lost, and each call once."""

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_llm.prices import as_usd

WANTED = "create table wanted (key text primary key, picousd integer) without rowid"
IN_LEDGER = """
select coalesce(sum(coalesce(calls.picousd, wanted.picousd)), 0),
    coalesce(sum(case when calls.state != 'answered' then calls.picousd end), 0),
    coalesce(sum(case when calls.state = 'unknown' then calls.picousd end), 0),
    sum(calls.state = 'answered' and calls.picousd is null and wanted.picousd is null)
from ledger.calls left join wanted on wanted.key = calls.key
where wanted.key is not null or calls.purpose in ({marks})
"""
BROUGHT = "select sum(picousd) from wanted where key not in (select key from ledger.calls)"


@dataclass(frozen=True)
class Sum:
    """In picodollars."""

    picousd: int
    lost_picousd: int
    """Of it, for calls that brought no answer."""
    unknown_picousd: int
    """Of that, the most that calls may have cost of which nobody can say whether they were billed."""

    def as_json(self) -> dict[str, Any]:
        return {
            "usd": as_usd(self.picousd),
            "lost_usd": as_usd(self.lost_picousd),
            "unknown_usd": as_usd(self.unknown_picousd),
        }


class Spent:
    """Adds up what answers cost; a context manager. Their number takes no memory.

    Args:
        store: where the ledger is; answers that it does not know were brought from elsewhere and cost what they say.
        purposes: all that was ever spent on them counts, whether or not anything came of it.
    """

    def __init__(self, store: Path, purposes: Sequence[str]):
        self._store, self._purposes = store, tuple(purposes)
        self._db = sqlite3.connect("", isolation_level=None, uri=True)  # a file without a name, gone when it is closed
        self._db.execute(WANTED)

    def __enter__(self) -> "Spent":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def saw(self, answers: Iterable[tuple[str, int | None]]) -> None:
        """Add answers: the digest of what was asked, and what the answer says that it cost, in picodollars."""
        self._db.execute("begin")
        self._db.executemany("insert or ignore into wanted values (?, ?)", answers)
        self._db.execute("commit")

    def total(self) -> Sum | None:
        """All calls for these answers and purposes; None where the price of one that was answered is not known."""
        if not self._store.exists():
            brought = self._db.execute("select sum(picousd) from wanted").fetchone()[0]
            return None if brought is None else Sum(brought, 0, 0)
        with self._ledger():
            marks = ",".join("?" * len(self._purposes))
            row = self._db.execute(IN_LEDGER.format(marks=marks), self._purposes).fetchone()
            paid, lost, unknown, num_unpriced = row
            brought = self._db.execute(BROUGHT).fetchone()[0]
        if num_unpriced or (num_unpriced is None and brought is None):  # None: the ledger knows nothing of them
            return None
        return Sum(paid + (brought or 0), lost, unknown)

    @contextlib.contextmanager
    def _ledger(self) -> Any:
        self._db.execute("attach ? as ledger", (f"{self._store.absolute().as_uri()}?mode=ro",))
        try:
            yield
        finally:
            self._db.execute("detach ledger")
