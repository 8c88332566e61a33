"""What a sync needs of a place that holds files: a folder and a bucket are the two there are."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from nexa_core import durable
from nexa_core.errors import GateError, UserError
from nexa_core.storage.digest_cache import DigestCache

PART_BYTES = 8 << 20
"""Files up to this size move in one piece, larger ones in pieces of it; S3 takes no less than 5 MiB."""

DOWNLOAD = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(durable.TEMPORARY_SUFFIX)}")
"""What a sync calls a file that it has not finished yet."""
OTHER_WRITERS = re.compile(rf"\..+\.[0-9]+(\.whole)?{re.escape(durable.TEMPORARY_SUFFIX)}", re.DOTALL)
"""What the other writers of this laboratory call theirs; a user's own `.notes.partial` is a file like any other."""

Keep = Callable[[str], bool]
"""Whether a key belongs to what is synced."""
Moved = Callable[[int], None]
"""Told how many more bytes have arrived."""
Listed = Callable[[int], None]
"""Told how many files have been listed so far."""


def untold(_: int) -> None:
    """For a caller who does not want to be told."""


@dataclass(frozen=True)
class Entry:
    """A file of a place as it was listed."""

    key: str
    size_bytes: int
    version: str
    """Another one whenever the bytes may be others: an ETag, or the times and the inode of a file. Never a digest."""
    is_settled: bool = True
    """Whether a later change is sure to change `version`; a file that was written this instant may be written again."""


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file."""

    data: bytes | bytearray
    stated_sha256: str | None = None
    """The digest of the whole file, where the place that holds it has it beside the bytes."""


class Place(Protocol):
    """A folder or a bucket. All methods but `entries` and `writing` may be called from several threads."""

    url: str
    digests: DigestCache

    def entries(self, keep: Keep, listed: Listed = untold) -> dict[str, Entry]:
        """Every file there is, by key.

        Raises:
            UserError: a key that is kept cannot be the name of a file in a folder.
        """

    def require_there(self) -> None:
        """Raise a `UserError` where nothing at all lies here; asked of a source in which no file was found."""

    def stated_digest(self, entry: Entry) -> str | None:
        """The file's SHA-256 where it is known without reading the file."""

    def read(self, entry: Entry, start: int, stop: int) -> Piece:
        """Bytes of the file as it was listed.

        Raises:
            Conflict: it is another file by now.
        """

    def hash(self, entry: Entry, moved: Moved = untold) -> str:
        """The SHA-256 of the bytes of the file as it was listed, all of them read.

        Raises:
            Conflict: it is another file by now.
        """

    def check(self, keys: list[str]) -> None:
        """Raise a `UserError` where one of the new keys cannot be written."""

    def writing(self) -> AbstractContextManager[None]:
        """What has to be held while this place is written to."""

    def write(
        self, key: str, source: "Place", entry: Entry, *, replaces: Entry | None, lanes: int, moved: Moved
    ) -> None:
        """Copy a file here, whole or not at all, in place of `replaces` and of nothing else.

        Raises:
            Conflict: the file that is there is not `replaces`, or the source's has changed.
            Corrupt: what arrived does not have the digest that the source states.
        """

    def remove(self, entries: list[Entry]) -> None:
        """Delete files that are still as they were listed."""

    def remove_left(self, unfinished: list[str]) -> None:
        """Delete those of the unfinished files that a killed sync left here and that nobody writes any longer."""


class Conflict(GateError):
    """Somebody else changed a file while it was synced; nothing of theirs was overwritten."""

    def __init__(self, where: str, what: str):
        super().__init__(f"{where} {what}. It was left as it is; run the same command again to plan anew.")


class Corrupt(GateError):
    """Bytes that arrived are not those that were sent."""

    def __init__(self, where: str, *, stated: str, found: str):
        super().__init__(
            f"{where} is corrupt: its sha256 is {found}, and {stated} was stated when it was uploaded. "
            "Nothing was written under its name; upload it again from where it is whole."
        )


def where(place: Place, key: str) -> str:
    """A file as messages name it."""
    return f"{place.url.rstrip('/')}/{printable(key)}"


def printable(key: str) -> str:
    """`key` on one line, whatever characters it has."""
    return key if key.isprintable() else repr(key)[1:-1]


def parents(key: str) -> list[str]:
    """The folders around a file, the outermost first."""
    parts = key.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def is_unfinished(key: str) -> bool:
    """Whether a file is one that a writer of this laboratory has not finished yet, or lies in such a folder."""
    return durable.TEMPORARY_SUFFIX in key and any(
        DOWNLOAD.fullmatch(part) or OTHER_WRITERS.fullmatch(part) for part in key.split("/")
    )


def refuse_keys(bad: list[str], why: str, do: str) -> None:
    """Raise for keys that cannot be synced, if there are any."""
    if bad:
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        raise UserError(f"{printable(bad[0])!r}{more}: {why}. {do}, or leave it out with --exclude.")


def digest(place: Place, entry: Entry, moved: Moved = untold) -> str:
    """The SHA-256 of a file, reading it only where the place cannot state it."""
    known = place.stated_digest(entry)
    if known is None:
        known = place.hash(entry, moved)
        place.digests.learn(entry, known)
    else:
        moved(entry.size_bytes)
    return known


def read_ahead(source: Place, entry: Entry, *, start: int, lanes: int) -> Iterator[Piece]:
    """The pieces of a file in order from `start` on, up to `lanes` of them on their way at once."""
    ends = [(at, min(at + PART_BYTES, entry.size_bytes)) for at in range(start, entry.size_bytes, PART_BYTES)]
    if len(ends) <= 1:
        yield from (source.read(entry, *end) for end in ends)
        return
    with ThreadPoolExecutor(lanes) as pool:
        coming: list[Future[Piece]] = [pool.submit(source.read, entry, *end) for end in ends[:lanes]]
        try:
            for index in range(len(ends)):
                yield coming[index].result()
                coming[index] = Future()  # lets the bytes go
                if index + lanes < len(ends):
                    coming.append(pool.submit(source.read, entry, *ends[index + lanes]))
        finally:
            pool.shutdown(cancel_futures=True)
