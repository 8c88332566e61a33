"""What a source yields: good rows, and bad ones with the reason."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

MAX_EXCERPT_CHARS = 300
BLANK = "empty row"
UNREADABLE = "unreadable file"


ExcerptsAt = Callable[[Iterable[int]], Iterator[str]]


class RawRow(NamedTuple):
    """A row as the source has it; `line` counts from 1, and is the row's number where a format has no lines.

    `offset` is the byte of the file, unpacked, at which the row begins; None where a format has no lines. `is_json` says that
    all values are of JSON's own types: finite numbers, integers of 64 bits.
    """

    file: str
    line: int
    values: dict[str, Any]
    offset: int | None = None
    is_json: bool = False


class BadRow(NamedTuple):
    """What could not be read or used; `line` is None where it is a whole file.

    `reason` is one of few, so that it can be counted; `detail` is particular to the row.
    """

    file: str
    line: int | None
    reason: str
    raw: str = ""
    detail: str = ""
    offset: int | None = None


Row = RawRow | BadRow


class Piece(Protocol):
    """A part of a source that can be read by itself, in another process where it is not the only one."""

    file: str

    @property
    def size_bytes(self) -> int:
        """Of what it reads, compressed or not; 0 where nobody knows."""

    @property
    def begin_bytes(self) -> int:
        """Where in its file it begins."""

    def rows(self) -> Iterator[Row]:
        """Its rows, their lines counted from its beginning; blank lines at its end are rows."""

    @property
    def num_lines(self) -> int:
        """Of those that were read."""

    def digest(self) -> str | None:
        """A digest of all that its rows are made of; None where it cannot be told before they are read."""

    @property
    def excerpts_at(self) -> ExcerptsAt | None:
        """Reads the beginnings of the rows at these offsets again, where that is possible."""


def excerpt(raw: Any) -> str:
    """The beginning of a row's text or values, as valid Unicode whatever it holds."""
    if isinstance(raw, dict):  # more of a long text is not shown
        raw = {name: value[:MAX_EXCERPT_CHARS] if type(value) is str else value for name, value in raw.items()}
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
    return text[:MAX_EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode("utf-8")


def without_trailing_blanks(rows: Iterable[Row]) -> Iterator[Row]:
    """`rows` without the empty lines at the file's end, which an editor leaves and nobody means as rows."""
    held: list[Row] = []
    for row in rows:
        if isinstance(row, BadRow) and row.reason == BLANK and not row.raw.strip():
            held.append(row)
            continue
        yield from held
        held.clear()
        yield row
