"""CSV files: RFC 4180 quoting, read strictly, going on after each broken row."""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nexa_core.config.data import CsvFormat
from nexa_core.errors import UserError
from nexa_data.sources.raw import BLANK, BadRow, RawRow, Row, excerpt, without_trailing_blanks
from nexa_data.sources.streams import Line, UnreadableError, lines

MAX_RECORD_CHARS = 8 * 2**20
"""How far a quoted field may run on before its opening quote counts as one that nobody closed."""


class Record(NamedTuple):
    """The fields of one row; a row that is bad has a `problem`."""

    line: int
    offset: int
    fields: list[str]
    raw: str
    problem: str = ""
    detail: str = ""


def read_csv(path: Path, file: str, settings: CsvFormat) -> Iterator[Row]:
    """The rows of one file as dicts of strings.

    Raises:
        UserError: a column name stands twice in the header, or `columns` has another length than the header.
        UnreadableError: the header is broken, so that no row can be understood.
    """
    source = RecordLines(lines(path))
    records = _records(source, settings.delimiter)
    columns = list(settings.columns or ())
    if settings.header:
        header = next(records, None)
        if header is None:
            return
        columns = _columns(header, columns, file)
    source.num_columns = len(columns)
    has_rows = False
    for row in without_trailing_blanks(_row(record, columns, file) for record in records):
        has_rows = True
        yield row
    if settings.header and not has_rows:
        yield BadRow(file, None, "header without rows", ",".join(columns))


def _columns(header: Record, given: list[str], file: str) -> list[str]:
    if header.problem:
        raise UnreadableError(f"the header is broken: {header.problem} {header.detail}".strip())
    if given and len(given) != len(header.fields):
        raise UserError(f"{file}: the header has {len(header.fields)} columns, csv.columns names {len(given)}")
    columns = given or header.fields
    doubles = sorted({name for name in columns if columns.count(name) > 1})
    if doubles:
        names = ", ".join(repr(name) for name in doubles)
        raise UserError(
            f"{file}: the header has {names} more than once. Name the columns with `csv: {{columns: [...]}}`"
        )
    return columns


def _row(record: Record, columns: list[str], file: str) -> Row:
    if record.problem:
        return BadRow(file, record.line, record.problem, excerpt(record.raw), record.detail, record.offset)
    if len(record.fields) == len(columns) and any(record.fields):
        return RawRow(file, record.line, dict(zip(columns, record.fields, strict=True)), record.offset, True)
    if not any(field.strip() for field in record.fields):
        return BadRow(file, record.line, BLANK, excerpt(record.raw), offset=record.offset)
    reason = "too few fields" if len(record.fields) < len(columns) else "too many fields"
    detail = f"{len(record.fields)} instead of {len(columns)}"
    return BadRow(file, record.line, reason, excerpt(record.raw), detail, record.offset)


class RecordLines:
    """The lines of a file as `csv.reader` takes them: knows those of the record at hand, and takes lines back."""

    def __init__(self, source: Iterator[Line]):
        self._source = source
        self._returned: deque[Line] = deque()
        self._num_chars = 0
        self.taken: list[Line] = []
        self.num_columns: int | None = None
        """Once they are known: a record over several lines with another number of fields has a quote that nobody closed."""

    def __iter__(self) -> "RecordLines":
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._source)
        self.taken.append(line)
        self._num_chars += len(line.text)
        if self._num_chars > MAX_RECORD_CHARS and len(self.taken) > 1:
            raise csv.Error("the record is too long")
        return line.text

    def start_record(self) -> None:
        self.taken = []
        self._num_chars = 0

    def return_all_but_first(self) -> Line:
        """The record's first line; the others will be given out again."""
        first, *others = self.taken
        self._returned.extendleft(reversed(others))
        return first


def _records(source: RecordLines, delimiter: str) -> Iterator[Record]:
    """Every record; after a broken one reading goes on with its second line, so an open quote costs one line."""
    csv.field_size_limit(2 * MAX_RECORD_CHARS)  # the module's own limit is 128 KiB, less than a long document
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.start_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = _reason(error, len(source.taken))
            first = source.return_all_but_first()
            yield Record(first.number, first.offset, [], first.text, first.problem or reason, first.detail)
            reader = csv.reader(source, delimiter=delimiter, strict=True)
            continue
        if len(source.taken) > 1 and source.num_columns not in (None, len(fields)):
            detail = f"{len(fields)} fields instead of {source.num_columns} over {len(source.taken)} lines"
            first = source.return_all_but_first()
            yield Record(first.number, first.offset, [], first.text, "unclosed quote", detail)
            reader = csv.reader(source, delimiter=delimiter, strict=True)
            continue
        yield _record(fields, source.taken)


def _record(fields: list[str], taken: list[Line]) -> Record:
    raw = taken[0].text if len(taken) == 1 else "".join(line.text for line in taken)
    for line in taken:
        if line.problem:
            return Record(taken[0].number, taken[0].offset, fields, raw, line.problem, line.detail)
    return Record(taken[0].number, taken[0].offset, fields, raw)


def _reason(error: csv.Error, num_lines: int) -> str:
    if num_lines > 1 or "unexpected end of data" in str(error):
        return "unclosed quote"
    if "expected after" in str(error):
        return "text after a closing quote"
    if "new-line character" in str(error):
        return "carriage return inside a line"
    return str(error)
