"""JSON documents and JSON lines."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, repeat
from pathlib import Path
from typing import Any

import orjson

from nexa_core.config.data import JsonFormat
from nexa_data.sources.raw import BLANK, MAX_EXCERPT_CHARS, BadRow, RawRow, Row, excerpt, without_trailing_blanks
from nexa_data.sources.streams import (
    MAX_LINE_BYTES,
    UTF8_MARK,
    UTF16_MARKS,
    Line,
    UnreadableError,
    named_line,
    open_bytes,
    raw_lines,
)

HUGE = 2.0**63
NEVER_HUGE = frozenset({str, int, bool, type(None)})
LINES_AT_ONCE = 64


def read_json_lines(path: Path, file: str) -> Iterator[Row]:
    """A row for each line that holds a JSON object."""
    with open_bytes(path) as stream:
        yield from without_trailing_blanks(rows_of_lines(raw_lines(stream), file))


def rows_of_lines(lines: Iterable[tuple[int, bytes, bool]], file: str) -> Iterator[Row]:
    """A row for each of `raw_lines`, numbered from 1; blank ones at the end are rows as well."""
    for number, (offset, data, is_cut) in enumerate(lines, 1):
        values = None if is_cut else _fast(data)
        if values is None:
            yield _row(named_line(number, offset, data, is_cut=is_cut), file)
        else:
            yield RawRow(file, number, values, offset, True)


def rows_of_block(data: bytes, begin: int, file: str) -> Iterator[Row]:
    """What `rows_of_lines` gives for whole lines that lie in memory, in less time.

    Args:
        begin: where they begin in their file.
    """
    if (begin == 0 and data.startswith((UTF8_MARK, *UTF16_MARKS))) or len(data) >= MAX_LINE_BYTES:
        yield from rows_of_lines(raw_lines(io.BytesIO(data), begin), file)
        return
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    offsets = list(accumulate((len(line) + 1 for line in lines), initial=begin))
    for first in range(0, len(lines), LINES_AT_ONCE):
        some = lines[first : first + LINES_AT_ONCE]
        places = offsets[first : first + len(some)]
        values = _all_fast(some)
        if values is None:
            yield from _one_by_one(some, first, places, file)
        else:
            yield from map(RawRow, repeat(file), count(first + 1), values, places, repeat(True))


def _one_by_one(lines: Sequence[bytes], first: int, offsets: Sequence[int], file: str) -> Iterator[Row]:
    for number, (offset, line) in enumerate(zip(offsets, lines, strict=True), first + 1):
        values = _fast(line)
        if values is None:
            yield _row(named_line(number, offset, line, is_cut=False), file)
        else:
            yield RawRow(file, number, values, offset, True)


def excerpts_at(path: Path, offsets: Iterable[int]) -> Iterator[str]:
    """The beginnings of the lines that begin at these bytes of an uncompressed file."""
    with path.open("rb", buffering=0) as stream:
        for offset in offsets:
            stream.seek(offset)
            line, _, _ = stream.read(4 * MAX_EXCERPT_CHARS).partition(b"\n")
            yield excerpt(line.decode("utf-8", "ignore").strip())


def _all_fast(lines: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """What `_fast` gives for each of some lines; None where one of them takes a closer look."""
    try:
        rows = list(map(orjson.loads, lines))
    except orjson.JSONDecodeError:
        return None
    if set(map(type, rows)) != {dict} or not all(rows):
        return None
    values = chain.from_iterable(map(dict.values, rows))
    return None if _has_huge([value for value in values if type(value) not in NEVER_HUGE]) else rows


def _fast(data: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None where it takes a closer look to say what it holds, or what is wrong with it."""
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if type(values) is not dict or not values:
        return None
    return values if set(map(type, values.values())) <= NEVER_HUGE or not _has_huge(values.values()) else None


def _has_huge(values: Iterable[Any]) -> bool:
    """Whether a number may have been an integer that orjson makes a float, because it has no 64 bits for it."""
    for value in values:
        kind = type(value)
        if kind is float:
            if not -HUGE < value < HUGE:
                return True
        elif (kind is list and _has_huge(value)) or (kind is dict and _has_huge(value.values())):
            return True
    return False


def _row(line: Line, file: str) -> Row:
    if line.problem:
        return BadRow(file, line.number, line.problem, excerpt(line.text.strip()), line.detail, line.offset)
    text = line.text.strip()
    if not text:
        return BadRow(file, line.number, BLANK, offset=line.offset)
    try:
        value = parse(text)
    except (ValueError, RecursionError) as error:
        return BadRow(file, line.number, "not JSON", excerpt(text), _what(error), line.offset)
    return _object(value, file, line.number, line.offset)


def read_json(path: Path, file: str, settings: JsonFormat) -> Iterator[Row]:
    """The rows of one document, which is read as a whole: a list of objects, or a single one.

    Raises:
        UnreadableError: the document is not JSON, or has no such rows.
    """
    with open_bytes(path) as stream:
        data = stream.read().removeprefix(UTF8_MARK)
    if not data.strip():
        return
    try:
        document = parse(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON: {_what(error)}") from None
    records = _list_of_records(document, settings.records)
    for number, value in enumerate(records, 1):
        yield _object(value, file, number)


def parse(text: str) -> Any:
    """The JSON value in `text`; NaN and Infinity, which Python's parser takes by default, are errors."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _list_of_records(document: Any, key: str | None) -> list[Any]:
    if key is None:
        return document if isinstance(document, list) else [document]
    records = document.get(key) if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise UnreadableError(f"no list of rows under the key '{key}' (json.records)")
    return records


def _object(value: Any, file: str, number: int, offset: int | None = None) -> Row:
    if isinstance(value, dict):
        return RawRow(file, number, value, offset) if value else BadRow(file, number, BLANK, "{}", offset=offset)
    return BadRow(file, number, "not a JSON object", excerpt(value), f"a {type(value).__name__}", offset)


def _what(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"{error.msg} at {place}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
