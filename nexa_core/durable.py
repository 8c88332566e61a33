"""The one module that writes files: a reader sees the old bytes or the new ones, never a part.

Each write goes to a temporary file beside its target, is flushed to the disk, renamed, and the folder is
flushed as well, so that what exists after a power cut is complete.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from nexa_core.redact import Secrets, known_secrets, redact

TEMPORARY_SUFFIX = ".partial"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@contextlib.contextmanager
def create(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well, and vanishes when it does not.

    A device or pipe, as /dev/stdout, is written to as it is.

    Args:
        flush: False for what can be made again and is held against its digest before it is used: it is not waited for the disk.
    """
    if _is_device(path):
        with open(path, "wb") as file:
            yield file
            file.flush()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not say of which file
        raise
    if flush:
        flush_folder(path.parent)


@contextlib.contextmanager
def resume(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """The file `partial`, as an earlier writer left it, that takes the name `path` when the block ends well.

    When it does not, `partial` stays for the next try, unless the disk is full or nothing had been written.
    It is locked meanwhile, so that `remove_if_left` leaves it alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _open_locked(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_full or (partial.exists() and not partial.stat().st_size):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    flush_folder(path.parent)


def remove_if_left(partial: Path) -> None:
    """Delete a file of `resume` whose writer is gone."""
    with (
        contextlib.suppress(FileNotFoundError, BlockingIOError),
        open(partial, "r+b") as file,
    ):  # else NFS locks nothing
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_named(file, partial):
            partial.unlink()


def _open_locked(path: Path) -> BinaryIO:
    while True:
        file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 -- the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_named(file, path):
            return file
        file.close()  # it was removed, or got its name, before the lock was ours


def is_named(file: IO[Any], path: Path) -> bool:
    """Whether the open file is the one of this name, and no other has been put in its place."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_bytes(path: Path, data: bytes) -> None:
    with create(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, redact(text).encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in its own key order.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON has no word for.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one compact JSON value a line, streaming."""
    secrets = known_secrets()
    with create(path) as file:
        for value in values:
            file.write(json_line(value, secrets))


class Appender:
    """An open file that grows by whole JSON lines; `flush` makes those written so far survive a power cut."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._secrets = known_secrets()
        self._file = open(path, "ab")  # noqa: SIM115 -- closed by `close`

    def write(self, value: Any) -> None:
        self._file.write(json_line(value, self._secrets))

    def show(self) -> None:
        """Let who reads the file see what was written, without waiting for the disk."""
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


LOOKED_AT_ONCE = 1 << 16


class Journal:
    """A file of JSON lines, each of which is whole and on the disk when `append` returns; one process at a time holds it.

    What a killed writer left of a last line is cut off when it is opened; `cut_bytes` says how much that was.

    Args:
        waits: for the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and it was not to be waited for.
    """

    def __init__(self, path: Path, *, waits: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._secrets = known_secrets()
        is_new = not path.exists()
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 -- closed by `close`
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            self.cut_bytes = self._mend()
            self._size = os.fstat(self._file.fileno()).st_size
        except BaseException:
            self._file.close()
            raise
        if is_new:
            flush_folder(path.parent)

    def lines(self) -> Iterator[bytes]:
        """The lines that are there."""
        with self.path.open("rb") as file:
            yield from file

    def append(self, values: Iterable[Any]) -> None:
        """Add a line for each value: all of them, or none where that fails.

        Raises:
            OSError: the disk is full; or (ESTALE) another program has written to the file or replaced it.
        """
        if not is_named(self._file, self.path) or os.fstat(self._file.fileno()).st_size != self._size:
            raise OSError(errno.ESTALE, "another program has changed it", str(self.path))
        data = b"".join(json_line(value, self._secrets) for value in values)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file.fileno(), data[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = error.filename or str(self.path)
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        self._file.close()

    def _mend(self) -> int:
        """End the last line where it lacks but its end, and cut it off where it lacks more."""
        size = os.fstat(self._file.fileno()).st_size
        line, begin = b"", size
        while begin and b"\n" not in line:  # from its end: it may be long
            begin = max(0, begin - LOOKED_AT_ONCE)
            line = os.pread(self._file.fileno(), size - begin, begin)
        line = line.rpartition(b"\n")[2]
        if not line:
            return 0
        if _is_json(line):
            os.write(self._file.fileno(), b"\n")
            return 0
        os.ftruncate(self._file.fileno(), size - len(line))
        os.fsync(self._file.fileno())
        return len(line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def open_log(path: Path) -> TextIO:
    """A text file to append log lines to, one flush a line; what a crash cuts off is at most the last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8", buffering=1)


def open_lock(path: Path) -> TextIO:
    """A file without content, to be locked with `flock`; made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a")


def reserve(path: Path, size_bytes: int) -> None:
    """A file that takes up room on the disk: who removes it when the disk is full has so much left to end in order.

    Raises:
        OSError: there is not so much room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = str(path)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block with this path; the file is there no longer than the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open_locked(path):
        try:
            yield
        finally:
            path.unlink()


def json_line(value: Any, secrets: Secrets | None = None) -> bytes:
    return (redact(_encode(value), secrets) + "\n").encode("utf-8")


def make_new_folder(path: Path) -> bool:
    """Create `path`; False when it exists already, so that two processes never share a new folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    flush_folder(path.parent)
    return True


def publish(target: Path, link: Path) -> None:
    """Make `link` show `target`, replacing what it showed: a relative symbolic link, or a copy where links can't be."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
        os.replace(temporary, link)
    except (OSError, NotImplementedError):
        temporary.unlink(missing_ok=True)
        copy(target, link)
        return
    flush_folder(link.parent)


def copy(source: Path, target: Path) -> None:
    """A copy of a file, or of a folder of files."""
    if source.is_dir():
        unnamed = begin_folder(target)
        for file in source.iterdir():
            copy(file, unnamed / file.name)
        name_folder(target)
        return
    with source.open("rb") as read, create(target) as write:
        shutil.copyfileobj(read, write)


def unnamed_folder(path: Path) -> Path:
    """Where the files of the folder that is to be `path` are written until it is whole; the same for all processes."""
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


def begin_folder(path: Path) -> Path:
    """The empty `unnamed_folder` of `path`."""
    unnamed = unnamed_folder(path)
    if unnamed.exists():
        shutil.rmtree(unnamed)
    unnamed.mkdir(parents=True)
    return unnamed


def name_folder(path: Path) -> None:
    """Give the folder that was begun its name `path`, in place of an earlier one; its files were written by `create`."""
    unnamed = unnamed_folder(path)
    flush_folder(unnamed)
    remove(path)
    os.replace(unnamed, path)
    flush_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Give a whole file another name in the same file system."""
    os.replace(source, target)
    for folder in {source.parent, target.parent}:
        flush_folder(folder)


def keep(source: Path, target: Path) -> None:
    """A second name for a file, in place of what had it; a copy where a file can have one name only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        copy(source, target)
    else:
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # which a rename onto the same file leaves
        flush_folder(target.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder; half a folder is never left under its name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(set_aside(path))
    else:
        path.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Give a folder the name of what is to be deleted, which it has now."""
    leaving = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    os.replace(folder, leaving)
    return leaving


def remove_empty_folders(folder: Path, *, below: Path) -> None:
    """Delete `folder` and the folders around it that hold nothing, but not `below` itself."""
    while folder.is_relative_to(below) and folder != below:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            if error.errno == errno.ENOTEMPTY:
                return
        folder = folder.parent


def remove_partial_files(folder: Path) -> None:
    """Delete what killed writers left below `folder`; only for a folder whose writer is known to be gone."""
    for left in list(folder.rglob(f".*{TEMPORARY_SUFFIX}")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Whether a rename to this name would replace what is no file: /dev/stdout is a link, /dev/null a device."""
    return path.exists() and not path.is_dir() and (path.parent == Path("/dev") or not path.is_file())


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
