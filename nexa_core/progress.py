"""Progress of a long job: a live bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Any, TextIO

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how far a job of `total` units is, its rate and the time left; a context manager.

    Where nobody knows the total beforehand it is None, and there is no time left to tell.
    Only what was done since `start` counts for the rate, so that a resumed job does not boast.
    """

    def __init__(self, what: str, *, total: int | None, unit: str, start: int = 0, stream: TextIO | None = None):
        self._what, self._total, self._unit, self._start = what, total, unit, start
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._began = self._last_line = 0.0

    def __enter__(self) -> "Progress":
        self._began = self._last_line = time.monotonic()
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._bar.start()
            self._job = self._bar.add_task(self._what, total=self._total, completed=self._start, note="")
        return self

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` units of the total are finished; `note` is shown behind them."""
        if self._bar is not None:
            self._bar.update(self._job, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (done - self._start) / (now - self._began)
            if self._total is None:
                logger.info("%s: %s %s, %.1f/s  %s", self._what, done, self._unit, rate, note)
                return
            left = f"{(self._total - done) / rate:.0f} s left" if rate > 0 else "time left unknown"
            logger.info("%s: %s/%s %s, %.1f/s, %s  %s", self._what, done, self._total, self._unit, rate, left, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(stream: TextIO) -> Any:
    # Imported here: rich costs more than the whole start-up of a command that shows no bar.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return RichProgress(*columns, console=Console(file=stream), transient=True)
