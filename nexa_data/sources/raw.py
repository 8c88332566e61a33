"""What a source yields: good rows, and bad ones with the reason."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

MAX_EXCERPT_CHARS = 300
BLANK = "empty row"
UNREADABLE = "unreadable file"


class RawRow(NamedTuple):
    """A row as the source has it; `line` counts from 1, and is the row's number where a format has no lines.

    `offset` is the byte of the file, unpacked, at which the row begins; None where a format has no lines.
    """

    file: str
    line: int
    values: dict[str, Any]
    offset: int | None = None


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


def excerpt(raw: Any) -> str:
    """The beginning of a row's text or values, as valid Unicode whatever it holds."""
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
