"""What a run writes down of itself: a line for each step, and beside the run how fast it was."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_core import durable

logger = logging.getLogger(__name__)

SECONDS_UNTIL_SHOWN = 1.0


class Tracker:
    """Takes a run's numbers as they come; those it has no use for it leaves, as this one does with all."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of an optimizer step."""

    def pace(self, step: int, rates: Mapping[str, float]) -> None:
        """Rates of the last second or so: of two equal runs, they differ."""

    def flush(self) -> None:
        """Make what was logged survive a power cut, where it is to."""

    def close(self) -> None:
        """No more comes."""


class Record(Tracker):
    """`metrics.jsonl`, the run's own record: all others are sent what stands in it.

    What lies beyond `resume_step` is cut off first, so that a line is never there twice. Who reads it while the run goes
    on sees a line a second later, or with the next line.
    """

    def __init__(self, path: Path, *, resume_step: int):
        kept = [line for line in read_json_lines(path) if line["step"] <= resume_step]
        durable.write_json_lines(path, kept)
        self._file = durable.Appender(path)
        self._shown_at = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write({"step": step, **values})
        if time.monotonic() - self._shown_at > SECONDS_UNTIL_SHOWN:
            self._file.show()
            self._shown_at = time.monotonic()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class PaceRecord(Tracker):
    """`logs/<run_id>.pace.jsonl`: when the run was at which step, and its rates.

    It lies outside the run's folder, whose bytes are to be the same whenever the run is made again.
    """

    def __init__(self, path: Path):
        self._file = durable.Appender(path)

    def pace(self, step: int, rates: Mapping[str, float]) -> None:
        self._file.write({"step": step, "time": round(time.time(), 3), **rates})
        self._file.show()

    def close(self) -> None:
        self._file.close()


class Trackers(Tracker):
    """Passes everything on to several trackers; one that fails is reported once and left out, the run goes on."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each("log", step, values)

    def pace(self, step: int, rates: Mapping[str, float]) -> None:
        self._each("pace", step, rates)

    def flush(self) -> None:
        self._each("flush")

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                if isinstance(tracker, Record):
                    raise  # these lines are the run's own: it must not go on without them
                self._trackers.remove(tracker)
                logger.warning("%s failed and is left out from here on: %s", type(tracker).__name__, error)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; a last line that a crash tore is left out, a missing file is empty."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]
