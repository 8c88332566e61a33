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
SAFE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
MAX_FILES = 64
MAX_BYTES = 64 * 2**30  # unpacked; weights of 16 billion parameters in float32


def pack(path: Path, folder: str, files: Mapping[str, bytes]) -> None:
    """Write `files` and their SHA256SUMS as one `.tar.gz` below `folder`: sorted, with no time and no owner in it."""
    sums = "".join(f"{digests.of_bytes(files[name])}  {name}\n" for name in sorted(files))
    everything = {**files, SUMS: sums.encode()}
    with (
        durable.create(path) as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in sorted(everything):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(everything[name])
            tar.addfile(member, io.BytesIO(everything[name]))


def unpack(tarball: Path, into: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack a package below `into` and return its folder; every byte is checked against SHA256SUMS.

    Raises:
        UserError: there is no such file.
        GateError: it is torn or no tarball; it holds anything but plain files in one folder, a name twice, more than
            `MAX_FILES` files or `max_bytes`; or a digest does not match.
    """
    if not tarball.is_file():
        there = ", ".join(sorted(path.name for path in tarball.parent.glob("*.tar.gz")))
        raise UserError(f"No package {tarball}.{f' There: {there}' if there else ''}")
    try:
        with tarball.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as tar:
            names = _extract(tar, into, max_bytes)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise GateError(f"{tarball} is not a whole .tar.gz: {error}") from None
    folders = {name.split("/")[0] for name in names}
    if len(folders) != 1:
        raise GateError(f"{tarball} has to hold one folder; it holds {len(folders)}.")
    folder = into / folders.pop()
    _check_sums(folder, tarball)
    return folder


def _extract(tar: tarfile.TarFile, into: Path, max_bytes: int) -> list[str]:
    names: list[str] = []
    left = max_bytes
    for member in tar:
        if not member.isfile() or not SAFE_NAME.match(member.name):
            raise GateError(f"The package holds '{member.name}', which is not a plain file in its one folder.")
        if member.name in names or len(names) == MAX_FILES:
            raise GateError(f"The package holds '{member.name}' twice, or more than {MAX_FILES} files.")
        left -= member.size
        if left < 0:
            raise GateError(f"The package unpacks to more than {max_bytes} bytes.")
        source = tar.extractfile(member)
        assert source is not None
        _copy(source, into / member.name)
        names.append(member.name)
    return names


def _copy(source: IO[bytes], target: Path) -> None:
    with durable.create(target) as out:
        while block := source.read(1 << 20):
            out.write(block)


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
