"""Tarballs: packed so that equal content gives equal bytes, unpacked so that nothing gets out of its folder."""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from nexa_core import digests, durable
from nexa_core.errors import GateError, UserError

SUMS = "SHA256SUMS"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_FILES = 64
# Weights hardly compress (to 0.93 of their size); a small file that unpacks to much more than this is a bomb.
MAX_RATIO = 20
SLACK_BYTES = 64 * 2**20
BLOCK_BYTES = 1 << 20


def pack(path: Path, folder: str, files: Mapping[str, bytes]) -> None:
    """Write `files` and their SHA256SUMS as one `.tar.gz` below `folder`: sorted, with no time and no owner in it."""
    sums = "".join(f"{digests.of_bytes(files[name])}  {name}\n" for name in sorted(files))
    everything = {**files, SUMS: sums.encode()}
    with (
        durable.create(path) as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in sorted(everything):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(everything[name])
            tar.addfile(member, io.BytesIO(everything[name]))


def unpack(tarball: Path, into: Path) -> Path:
    """Unpack a package below `into` and return its folder; every byte is checked against SHA256SUMS.

    Raises:
        UserError: there is no such file.
        GateError: it is torn or no tarball; it holds anything but plain files in one folder, a name twice, more than
            `MAX_FILES` files, or far more than its size lets expect; or a digest does not match.
    """
    if not tarball.is_file():
        there = ", ".join(sorted(path.name for path in tarball.parent.glob("*.tar.gz")))
        raise UserError(f"No package {tarball}.{f' There: {there}' if there else ''}")
    try:
        with tarball.open("rb") as file, gzip.GzipFile(fileobj=file, mode="rb") as plain:
            stream = _Capped(plain, SLACK_BYTES + MAX_RATIO * tarball.stat().st_size)
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                folder = _extract(tar, into)
            _check_end(stream)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        raise GateError(f"{tarball} is not a whole .tar.gz: {error}") from None
    except GateError as error:
        raise GateError(f"{tarball}: {error}") from None
    _check_sums(folder, tarball)
    return folder


class _Capped:
    """A stream that refuses to give more than `max_bytes`: headers are read into memory before their size is known."""

    def __init__(self, stream: gzip.GzipFile, max_bytes: int):
        self._stream, self._max_bytes, self._left = stream, max_bytes, max_bytes

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise GateError(f"it unpacks to more than {self._max_bytes:,} bytes, which no package of its size does")
        return block


def _extract(tar: tarfile.TarFile, into: Path) -> Path:
    """Write the members; only what `pack` makes is taken: regular files, each once, in one folder."""
    names: set[str] = set()
    for member in tar:
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise GateError(f"{member.name!r} is not a plain file")
        if not SAFE_NAME.fullmatch(member.name):
            raise GateError(f"{member.name!r} is not a file in the package's one folder")
        if member.name.lower() in names:  # some disks do not tell case apart
            raise GateError(f"{member.name!r} is in it twice")
        names.add(member.name.lower())
        if len(names) > MAX_FILES:
            raise GateError(f"it holds more than {MAX_FILES} files")
        if len({name.partition("/")[0] for name in names}) > 1:
            raise GateError(f"{member.name!r} is in a second folder")
        source = tar.extractfile(member)
        assert source is not None
        _copy(source, into / member.name)
        folder = into / member.name.partition("/")[0]
    if not names:
        raise GateError("it is empty")
    return folder


def _copy(source: IO[bytes], target: Path) -> None:
    with durable.create(target) as out:
        while block := source.read(BLOCK_BYTES):
            out.write(block)


def _check_end(stream: _Capped) -> None:
    """Read what is behind the last member, so that a cut or altered end is noticed: gzip's own checksum comes last."""
    while block := stream.read(BLOCK_BYTES):
        if block.strip(b"\0"):
            raise GateError("there are bytes behind its end")


def _check_sums(folder: Path, tarball: Path) -> None:
    if not (folder / SUMS).exists():
        raise GateError(f"{tarball} has no {SUMS}; it was not made by `nexa package`.")
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {path.name for path in folder.iterdir()} - {SUMS}
    if there != set(recorded):
        raise GateError(f"{tarball}: files and {SUMS} disagree on: {', '.join(sorted(there ^ set(recorded)))}")
    for name in sorted(there):
        if digests.of_file(folder / name) != recorded[name]:
            raise GateError(f"{tarball}: {name} does not have the digest in {SUMS}; the package was altered.")
