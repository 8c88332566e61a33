"""Plain text, cut into lines, paragraphs or whole files."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from nexa_core.config.data import TextFormat
from nexa_data.sources.raw import BadRow, RawRow, Row, excerpt
from nexa_data.sources.streams import Line, lines


def read_text(path: Path, file: str, settings: TextFormat) -> Iterator[Row]:
    """Rows with the one column `text`; here an empty line separates and is no row, unlike in the other formats."""
    for piece in _pieces(lines(path), settings.unit):
        yield _row(piece, file)


def _pieces(source: Iterator[Line], unit: str) -> Iterator[list[Line]]:
    if unit == "file":
        whole = list(source)
        if any(line.text.strip() for line in whole):
            yield whole
        return
    for is_blank, group in groupby(source, key=lambda line: not line.text.strip()):
        if not is_blank and unit == "paragraph":
            yield list(group)
        elif not is_blank:
            yield from ([line] for line in group)


def _row(piece: list[Line], file: str) -> Row:
    text = "".join(line.text for line in piece).replace("\r\n", "\n").rstrip("\n")
    for line in piece:
        if line.problem:
            return BadRow(file, line.number, line.problem, excerpt(text), line.detail, line.offset)
    return RawRow(file, piece[0].number, {"text": text}, piece[0].offset, True)
