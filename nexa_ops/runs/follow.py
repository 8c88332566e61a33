"""A run's log as it grows, to the end of the run; a log that is rotated or cut goes on."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_ops.runs.states import Found, Standing, standing_of

SECONDS_BETWEEN_LOOKS = 0.25
BLOCK_BYTES = 1 << 16


class Lines:
    """The lines that are added to a file from a place on; it may be replaced (rotated) or cut meanwhile."""

    def __init__(self, path: Path, *, count: int):
        """Begins with the last `count` lines.

        Raises:
            UserError: there is no such file.
        """
        self._path, self._rest = path, b""
        try:
            self._file: BinaryIO = path.open("rb")
        except FileNotFoundError:
            raise UserError(f"There is no log {path}: the run has written none yet, or it was cleaned.") from None
        begin = self._file.seek(0, os.SEEK_END)
        found = b""
        while begin and found.count(b"\n") <= count:
            step = min(BLOCK_BYTES, begin)
            begin = self._file.seek(begin - step)
            found = self._file.read(step) + found
        self._file.seek(begin)
        self._waiting = self._read()[-count:] if count else self._read()[:0]

    def new(self) -> list[str]:
        """Those that have come since it was asked last."""
        lines, self._waiting = self._waiting, []
        lines += self._read()
        if self._is_replaced():  # all of the old one has been read
            self._file.close()
            self._file, self._rest = self._path.open("rb"), b""
            lines += self._read()
        return lines

    def close(self) -> None:
        self._file.close()

    def _read(self) -> list[str]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _is_replaced(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:  # between two names; the next one comes
            return False
        return there.st_ino != os.fstat(self._file.fileno()).st_ino or there.st_size < self._file.tell()


def tail(layout: Layout, found: Found, *, count: int, follow: bool, say: Callable[[str], None]) -> Standing:
    """Say the last lines of a run's log and, when following, all that come until it ends; returns how it stands.

    Raises:
        UserError: it has no log.
    """
    lines = Lines(layout.logs / f"{found.run_id}.log", count=count)
    standing = look_again(layout, found)
    while follow and standing.state == "running":
        _say_all(lines, say)
        time.sleep(SECONDS_BETWEEN_LOOKS)
        standing = look_again(layout, found)
    _say_all(lines, say)  # asked last: nothing comes after the end
    lines.close()
    return standing


def wait_for_end(layout: Layout, found: Found, *, seconds: float) -> Standing:
    """How it stands when it no longer runs, or when the time is up."""
    until = time.monotonic() + seconds
    with Progress(f"waiting for {found.run_id}", total=None, unit="steps") as progress:
        while (standing := look_again(layout, found)).state == "running" and time.monotonic() < until:
            progress.update(standing.holder.step or 0 if standing.holder else 0)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return standing


def look_again(layout: Layout, found: Found) -> Standing:
    """How a run stands by now.

    Raises:
        UserError: it is no run of training, or it is gone.
    """
    is_finished = (layout.run_manifests / f"{found.run_id}.json").exists()
    standing = standing_of(Found(found.run, found.begun_at, found.attempt, is_finished))
    if standing is None:
        path = found.run.path
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"Run {found.run_id} lies in {path.readlink()}, which is not there: is that storage mounted?"
            )
        raise UserError(f"{found.run_id} is no run of training: it is an evaluation, or its folder is gone.")
    return standing


def standing_text(found: Found, standing: Standing) -> str:
    """One line on how a run stands and how it goes on."""
    why = f": {standing.ending.said}" if standing.ending and standing.ending.said else ""
    go_on = f"; to go on: nexa runs resume {found.run_id}" if standing.state in ("interrupted", "failed") else ""
    return f"run {found.run_id} is {standing.state}{why}{go_on}"


def _say_all(lines: Lines, say: Callable[[str], None]) -> None:
    for line in lines.new():
        say(line)
