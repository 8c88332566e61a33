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
        data = file.readline(MAX_LINE_BYTES)
        if data.startswith(UTF16_MARKS):
            raise UnreadableError("the file is UTF-16; convert it to UTF-8")
        data = data.removeprefix(UTF8_MARK) or file.readline(MAX_LINE_BYTES)
        number = 0
        while data:
            number += 1
            yield _line(number, data, file)
            data = file.readline(MAX_LINE_BYTES)


def _line(number: int, data: bytes, file: BinaryIO) -> Line:
    if len(data) == MAX_LINE_BYTES and not data.endswith(b"\n"):
        while rest := file.readline(MAX_LINE_BYTES):
            if rest.endswith(b"\n"):
                break
        return Line(number, _shown(data[:1000]) + "\n", "line too long", f"more than {MAX_LINE_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Line(number, _shown(data), "not UTF-8", f"byte 0x{data[error.start]:02x} at byte {error.start + 1}")
    if "\0" in text:
        return Line(number, text, "NUL byte", f"at character {text.index(chr(0)) + 1}")
    return Line(number, text)


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
