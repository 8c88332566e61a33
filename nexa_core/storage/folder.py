"""A folder of this machine as a place to sync."""

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from nexa_core import digests, durable
from nexa_core.errors import NexaError, UserError
from nexa_core.lookup import did_you_mean
from nexa_core.storage.digest_cache import DigestCache
from nexa_core.storage.place import (
    DOWNLOAD,
    PART_BYTES,
    Conflict,
    Corrupt,
    Entry,
    Keep,
    Listed,
    Moved,
    Piece,
    Place,
    digest,
    parents,
    printable,
    read_ahead,
    refuse_keys,
    untold,
    where,
)

FILES_BETWEEN_UPDATES = 1000
UNSETTLED_NANOSECONDS = 20_000_000  # file systems stamp times by the kernel's tick, which is 10 ms at most


class Folder:
    """Files below `root`. Symbolic links are refused: what they lead to may lie anywhere."""

    def __init__(self, root: Path, *, cache: Path):
        self.root = root.resolve()
        self.url = str(root)
        self.digests = DigestCache(f"file://{self.root}", cache)

    def entries(self, keep: Keep, listed: Listed = untold) -> dict[str, Entry]:
        with _failed_reads_told(self.url, "Make it readable for this user."):
            return self._list(keep, listed)

    def _list(self, keep: Keep, listed: Listed) -> dict[str, Entry]:
        if _is_no_folder(self.root):
            raise UserError(
                f"{self.url} is a file; sync takes folders. Name its folder and --include {self.root.name!r}."
            )
        if file := next(filter(_is_no_folder, self.root.parents), None):
            raise UserError(
                f"{self.url} cannot be a folder, for {file} is a file. Name another folder, or rename the file."
            )
        found, links, odd, undecodable = {}, [], [], []
        for number, entry in enumerate(_walk(self.root)):
            if number % FILES_BETWEEN_UPDATES == 0:
                listed(number)
            key = os.path.relpath(entry.path, self.root)
            if not keep(key):
                continue
            if entry.is_symlink():
                links.append(key)
            elif not entry.is_file():
                odd.append(key)
            elif not _is_text(key):
                undecodable.append(key)
            else:
                found[key] = _entry(key, entry.stat())
        refuse_keys(links, f"a symbolic link in {self.url}", "Put the file itself there")
        refuse_keys(odd, f"neither a file nor a folder in {self.url}", "Move it elsewhere")
        refuse_keys(undecodable, f"a name in {self.url} that is not UTF-8, which S3 keys have to be", "Rename it")
        return found

    def require_there(self) -> None:
        if not self.root.exists():
            beside = self.root.parent
            names = [each.name for each in beside.iterdir() if each.is_dir()] if beside.is_dir() else []
            raise UserError(
                f"{self.url} does not exist, so there is nothing to copy.{did_you_mean(self.root.name, names)} "
                "Name a folder, or s3://bucket/prefix"
            )

    def stated_digest(self, entry: Entry) -> str | None:
        return self.digests.get(entry)

    def read(self, entry: Entry, start: int, stop: int) -> Piece:
        with self._reading(entry) as file:
            return Piece(_read_all(file.fileno(), start, stop))

    def hash(self, entry: Entry, moved: Moved = untold) -> str:
        with self._reading(entry) as file:
            file.moved = moved
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self, keys: list[str]) -> None:
        too_long = [key for key in keys if any(len(part.encode()) > 255 for part in key.split("/"))]
        refuse_keys(too_long, "longer than the 255 bytes that a file's name may have", "Rename it")
        folders = [key for key in keys if (self.root / key).is_dir()]
        refuse_keys(folders, f"would be a file where {self.url} has a folder", "Rename one of them")
        # The plan knows of those files only that the patterns match.
        files = {each for each in {each for key in keys for each in parents(key)} if _is_no_folder(self._path(each))}
        below = [key for key in keys if not files.isdisjoint(parents(key))]
        refuse_keys(below, f"would lie in a folder where {self.url} has a file", "Rename one of them")
        for key in keys:
            self._refuse_links(key)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        durable.make_new_folder(self.root)
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{self.url} is being synced by another process. Wait for it, or stop it.") from None
        try:
            yield
            # What a killed sync left of a file that has changed since; syncs into folders below this one go on.
            left = [entry.path for entry in _walk(self.root) if DOWNLOAD.fullmatch(entry.name)]
            self.remove_left([os.path.relpath(path, self.root) for path in left])
        finally:
            os.close(descriptor)

    def write(self, key: str, source: Place, entry: Entry, *, replaces: Entry | None, lanes: int, moved: Moved) -> None:
        self._refuse_links(key)
        path = self._path(key)
        partial = path.with_name(f".{_identity(source, entry)[:32]}{durable.TEMPORARY_SUFFIX}")
        try:
            with durable.resume(path, partial) as file:
                sha256 = _fill(file, source, entry, lanes=lanes, moved=moved)
                if sha256 is None:  # what an earlier sync left was not what it should be
                    sha256 = _fill(file, source, entry, lanes=lanes, moved=moved, afresh=True)
                self._check_still(key, replaces)
        except (FileExistsError, NotADirectoryError):
            raise Conflict(where(self, key), "cannot be written: a folder around it has become a file") from None
        source.digests.learn(entry, str(sha256))
        self.digests.learn(_entry(key, path.stat(), is_settled=True), str(sha256))

    def remove(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._check_still(entry.key, entry)
            durable.remove(self._path(entry.key))
        for entry in sorted(entries, key=lambda entry: entry.key, reverse=True):
            durable.remove_empty_folders(self._path(entry.key).parent, below=self.root)

    def remove_left(self, unfinished: list[str]) -> None:
        for path in map(self._path, unfinished):
            if DOWNLOAD.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                durable.remove_if_left(path)

    @contextlib.contextmanager
    def _reading(self, entry: Entry) -> Iterator["_Counted"]:
        """The open file, which has to be the same one still when the block ends."""
        do = "Make it readable for this user, or leave it out with --exclude; files synced before are whole."
        with _failed_reads_told(where(self, entry.key), do):
            try:
                descriptor = os.open(os.path.join(self.root, entry.key), os.O_RDONLY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                raise Conflict(where(self, entry.key), "was removed while it was read") from None
            with _Counted(descriptor) as file:
                yield file
                now = _entry(entry.key, os.fstat(descriptor))
        if (now.size_bytes, now.version) != (entry.size_bytes, entry.version):
            raise Conflict(where(self, entry.key), "changed while it was read")

    def _path(self, key: str) -> Path:
        return self.root / key

    def _refuse_links(self, key: str) -> None:
        parent = self._path(key).parent
        if os.path.realpath(parent) != str(parent):
            raise UserError(f"{where(self, key)} lies behind a symbolic link, which sync does not write through.")

    def _check_still(self, key: str, planned: Entry | None) -> None:
        try:
            now = _entry(key, os.lstat(self._path(key)))
        except (FileNotFoundError, NotADirectoryError):
            now = None
        if (now and (now.size_bytes, now.version)) != (planned and (planned.size_bytes, planned.version)):
            raise Conflict(where(self, key), "changed since the sync was planned")


class _Counted(FileIO):
    """A file that tells how much of it `hashlib.file_digest` has read."""

    moved: Moved = staticmethod(untold)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self.moved(count)
        return count


@contextlib.contextmanager
def _failed_reads_told(name: str, do: str) -> Iterator[None]:
    """Name what could not be read, and why; a command takes any other failure for one of writing."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {printable(error.filename or name)}: {error.strerror}. {do}") from None
    except OSError as error:  # the disk
        raise NexaError(f"cannot read {printable(error.filename or name)}: {error.strerror}.") from None


def _walk(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Everything below a folder but folders."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as inside:
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield entry


def _is_no_folder(path: Path) -> bool:
    """Whether something else than a folder is there."""
    return path.exists() and not path.is_dir()


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entry(key: str, found: os.stat_result, *, is_settled: bool | None = None) -> Entry:
    if is_settled is None:
        is_settled = time.time_ns() - found.st_ctime_ns > UNSETTLED_NANOSECONDS
    size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else -1
    return Entry(key, size_bytes, f"{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}", is_settled)


def _read_all(descriptor: int, start: int, stop: int) -> bytearray:
    """Bytes up to `stop` or the end of the file; no `bytes`, for botocore copies those once more to send them."""
    data, filled = bytearray(stop - start), 0
    with memoryview(data) as view:
        while filled < len(data) and (count := os.preadv(descriptor, [view[filled:]], start + filled)):
            filled += count
    del data[filled:]
    return data


def _identity(source: Place, entry: Entry) -> str:
    """Another one for other bytes, so that a download is only continued where it is the same file's."""
    return digests.of_value([source.url, entry.key, entry.size_bytes, entry.version])


def _fill(file: BinaryIO, source: Place, entry: Entry, *, lanes: int, moved: Moved, afresh: bool = False) -> str | None:
    """Write a file's bytes behind those that are there; their digest, or None where those that were there are wrong.

    Raises:
        Corrupt: all bytes came from the source, and it states another digest for them.
    """
    size = 0 if afresh else min(file.seek(0, os.SEEK_END), entry.size_bytes)
    begun = size // PART_BYTES * PART_BYTES
    file.truncate(begun)
    file.seek(0)
    hashed, stated = hashlib.sha256(), source.stated_digest(entry) if begun else None
    for _ in range(0, begun, PART_BYTES):
        hashed.update(file.read(PART_BYTES))
        moved(PART_BYTES)
    for piece in read_ahead(source, entry, start=begun, lanes=lanes):
        hashed.update(piece.data)
        file.write(piece.data)
        stated = stated or piece.stated_sha256
        moved(len(piece.data))
    found = hashed.hexdigest()
    if stated is None and begun:
        stated = digest(source, entry)  # the source states none: what was left by an earlier sync has to be compared
    if stated in (None, found):
        return found
    if begun:
        moved(-entry.size_bytes)
        return None
    file.truncate(0)
    raise Corrupt(where(source, entry.key), stated=str(stated), found=found)
