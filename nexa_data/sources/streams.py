"""Files as bytes and lines, decompressed, with the dirt of each line named."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 64 * 2**10
MAX_LINE_BYTES = 64 * 2**20
"""A longer line is bad, so that a file without line ends cannot fill the memory."""
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class UnreadableError(Exception):
    """The rest of a file cannot be read."""


class Line(NamedTuple):
    """One line with its end; of a bad line `problem` says what is wrong and `text` is only fit to be shown."""

    number: int
    offset: int
    """In bytes, of the unpacked file."""
    text: str
    problem: str = ""
    detail: str = ""


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed where its suffix is one of `COMPRESSIONS`."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    raw = pyarrow.OSFile(str(path), "rb")
    # A truncated file's last block is lost whole, so blocks are small.
    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, compression), BLOCK_BYTES))


def lines(path: Path) -> Iterator[Line]:
    """Each line of a text file, good or bad, in order.

    Raises:
        UnreadableError: the file is UTF-16.
    """
    with open_bytes(path) as file:
        for number, (offset, data, is_cut) in enumerate(raw_lines(file), 1):
            yield named_line(number, offset, data, is_cut=is_cut)


def raw_lines(file: BinaryIO, begin: int = 0) -> Iterator[tuple[int, bytes, bool]]:
    """Offset and bytes of each line of an open file, and whether only the first `MAX_LINE_BYTES` of it are given.

    Args:
        begin: where the stream begins in its file.

    Raises:
        UnreadableError: the file is UTF-16.
    """
    offset = begin
    while data := file.readline(MAX_LINE_BYTES):
        if offset == 0 and data.startswith(UTF16_MARKS):
            raise UnreadableError("the file is UTF-16; convert it to UTF-8")
        num_read = len(data)
        is_cut = num_read == MAX_LINE_BYTES and not data.endswith(b"\n")
        if offset == 0 and data.startswith(UTF8_MARK):
            if num_read > len(UTF8_MARK):
                yield len(UTF8_MARK), data[len(UTF8_MARK) :], is_cut
        else:
            yield offset, data, is_cut
        offset += num_read + (skip_line(file) if is_cut else 0)


def skip_line(file: BinaryIO) -> int:
    """Read to the end of a line; returns how many bytes that were."""
    skipped = 0
    while rest := file.readline(MAX_LINE_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def named_line(number: int, offset: int, data: bytes, *, is_cut: bool) -> Line:
    """A line of `raw_lines` as text, or with what is wrong with it."""
    if is_cut:
        return Line(number, offset, _shown(data[:1000]) + "\n", "line too long", f"more than {MAX_LINE_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Line(
            number, offset, _shown(data), "not UTF-8", f"byte 0x{data[error.start]:02x} at byte {error.start + 1}"
        )
    if "\0" in text:
        return Line(number, offset, text, "NUL byte", f"at character {text.index(chr(0)) + 1}")
    return Line(number, offset, text)


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
