"""What a run cost: seconds, processor time, memory and money, over all the attempts it took."""

import json
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nexa_core import durable

Attempt = dict[str, Any]


class CostMeter:
    """Keeps `cost.json` up to date; an attempt that was killed counts up to its last write."""

    def __init__(self, path: Path, *, usd_per_hour: float | None, started_at: datetime | None = None):
        self._path, self._usd_per_hour = path, usd_per_hour
        self._earlier: list[Attempt] = json.loads(path.read_text())["attempts"] if path.exists() else []
        self._started_at = started_at or datetime.now(UTC)
        self._clock = time.monotonic()
        self._num_rows = self._num_targets = self._num_tokens = 0
        self._rates: dict[str, float] = {}

    def count(self, *, num_rows: int, num_targets: int, num_tokens: int) -> None:
        """Add what this attempt has trained on."""
        self._num_rows += num_rows
        self._num_targets += num_targets
        self._num_tokens += num_tokens

    def note_rates(self, rates: dict[str, float]) -> None:
        """How fast this attempt trains."""
        self._rates = {name: round(rate, 4) for name, rate in rates.items()}

    def write(self, *, step: int) -> None:
        """Write the cost up to optimizer step `step`."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        attempt = {
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - self._clock, 3),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_memory_bytes": _peak_memory(),
            "last_step": step,
            "num_rows": self._num_rows,
            "num_targets": self._num_targets,
            "num_tokens": self._num_tokens,
            "throughput": self._rates,
        }
        attempts = [*self._earlier, attempt]
        wall_seconds = sum(each["wall_seconds"] for each in attempts)
        price = self._usd_per_hour
        cost = {
            "wall_seconds": round(wall_seconds, 3),
            "cpu_seconds": round(sum(each["cpu_seconds"] for each in attempts), 3),
            "usd_per_hour": price,
            "cost_usd": None if price is None else round(price * wall_seconds / 3600, 6),
            "attempts": attempts,
        }
        durable.write_json(self._path, cost)


def _peak_memory() -> int:
    """Bytes, of this process alone: what the system counts as its usage begins with that of the process it was made by."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
