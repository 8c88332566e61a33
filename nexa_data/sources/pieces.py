"""What a source is read in: whole streams of rows, ranges of bytes of large files of JSON lines, row groups of Parquet files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from nexa_core import digests
from nexa_data.sources.json_files import excerpts_at, rows_of_block
from nexa_data.sources.parquet_files import RowGroup, footer, read_row_groups, row_groups
from nexa_data.sources.raw import UNREADABLE, BadRow, Row
from nexa_data.sources.streams import MAX_LINE_BYTES, UTF16_MARKS, UnreadableError

PIECE_BYTES = 16 * 2**20


@dataclass
class Whole:
    """All rows of a file, or of a function."""

    file: str
    read: Callable[[], Iterator[Row]]
    path: Path | None = None
    """Of a file; None for a function."""
    size_bytes: int = 0
    begin_bytes: int = 0
    num_lines: int = 0
    excerpts_at: None = None

    def rows(self) -> Iterator[Row]:
        return self.read()

    def digest(self) -> str | None:
        return None if self.path is None else digests.quick_of_file(self.path)


@dataclass
class JsonLines:
    """The lines of a file that begin in a range of its bytes."""

    file: str
    path: Path
    begin: int
    end: int
    num_lines: int = 0
    _data: bytes | None = field(default=None, repr=False)
    _first: int = 0

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    @property
    def begin_bytes(self) -> int:
        return self.begin

    def rows(self) -> Iterator[Row]:
        self._load()
        assert self._data is not None
        try:
            for row in rows_of_block(self._data, self._first, self.file):
                self.num_lines += 1
                yield row
        except UnreadableError as error:
            yield BadRow(self.file, None, UNREADABLE, detail=str(error))

    def digest(self) -> str:
        self._load()
        assert self._data is not None
        return digests.quick(self._data)

    def excerpts_at(self, offsets: Iterable[int]) -> Iterator[str]:
        return excerpts_at(self.path, offsets)

    def _load(self) -> None:
        """Read the lines at once: the last one to its end, be that beyond the range. Where none begins nothing is looked for."""
        if self._data is not None:
            return
        with self.path.open("rb") as file:
            self._first = self.begin and _line_end(file, self.begin - 1, self.end - self.begin + 1)
            last = self.end if self._first >= self.end else _line_end(file, self.end - 1, MAX_LINE_BYTES + 2)
            file.seek(self._first)
            self._data = file.read(max(0, last - self._first))


@dataclass
class RowGroups:
    """Row groups of a Parquet file that follow each other."""

    file: str
    path: Path
    first: int
    """Which of the file's row groups comes first."""
    groups: Sequence[RowGroup]
    excerpts_at: None = None

    @property
    def size_bytes(self) -> int:
        return sum(group.end - group.begin for group in self.groups)

    @property
    def begin_bytes(self) -> int:
        return self.groups[0].begin

    @property
    def num_lines(self) -> int:
        return sum(group.num_rows for group in self.groups)

    def rows(self) -> Iterator[Row]:
        try:
            yield from read_row_groups(self.path, self.file, self.first, self.groups)
        except UnreadableError as error:
            yield BadRow(self.file, None, UNREADABLE, detail=str(error))

    def digest(self) -> str:
        """Of the groups' bytes, and of what the file says of them."""
        with self.path.open("rb") as file:
            file.seek(self.begin_bytes)
            data = file.read(self.groups[-1].end - self.begin_bytes)
        return digests.of_value([digests.quick(data), digests.quick(footer(self.path))])


def cut_parquet(file: str, path: Path) -> list[RowGroups]:
    """A file in pieces of whole row groups that follow each other; no piece where it has no rows.

    Raises:
        UnreadableError: the file is not Parquet.
    """
    pieces: list[list[RowGroup]] = []
    size = PIECE_BYTES
    for group in row_groups(path):
        if size >= PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(group)
        size += group.end - group.begin
    firsts = accumulate(map(len, pieces), initial=0)
    return [RowGroups(file, path, first, groups) for first, groups in zip(firsts, pieces, strict=False)]


def _line_end(file: BinaryIO, position: int, limit: int) -> int:
    """Where the line ends in which a byte lies, or where `limit` bytes from there end."""
    file.seek(position)
    return position + len(file.readline(limit))


def cut_json_lines(file: str, path: Path) -> list[JsonLines]:
    """An uncompressed file in pieces that follow each other; a small one, or one in UTF-16, is a single piece."""
    size = path.stat().st_size
    with path.open("rb") as opened:
        step = max(size, 1) if opened.read(2) in UTF16_MARKS else PIECE_BYTES
    return [JsonLines(file, path, begin, min(begin + step, size)) for begin in range(0, max(size, 1), step)]
