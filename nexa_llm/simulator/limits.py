"""Limits as a real server keeps them: requests and tokens per minute, and requests at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SECONDS_PER_MINUTE = 60.0
ROUNDING = 1e-6  # of a request or token: who waited exactly as long as told is let through


@dataclass(slots=True)
class Bucket:
    """Refills evenly over a minute; full at first, so that a minute's worth may come at once.

    Args:
        per_minute: What it holds, and what flows in within a minute.
    """

    per_minute: int
    level: float = field(init=False)
    filled_at: float = 0.0

    def __post_init__(self) -> None:
        self.level = float(self.per_minute)

    def fill(self, now: float) -> None:
        flowed = (now - self.filled_at) * self.per_minute / SECONDS_PER_MINUTE
        self.level = min(float(self.per_minute), self.level + flowed)
        self.filled_at = now

    def seconds_until(self, amount: float) -> float:
        """How long until so much is in it; more than it holds is never in it, and let through when it is full."""
        missing = min(amount, self.per_minute) - self.level
        return missing * SECONDS_PER_MINUTE / self.per_minute if missing > ROUNDING else 0.0


class Limits:
    """Says how long a request has to wait, and takes what it uses where it need not.

    A request above a limit uses nothing up. Tokens are those of the prompt and all that the answer may have.
    """

    def __init__(self, *, requests_per_minute: int | None, tokens_per_minute: int | None, concurrency: int | None):
        self._concurrency = concurrency
        named = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets = {name: Bucket(limit) for name, limit in named.items() if limit}

    def seconds_to_wait(self, now: float, *, tokens: int, num_in_flight: int, latency_seconds: float) -> float:
        """0 for a request that is let through.

        Args:
            num_in_flight: Requests at once, this one among them.
        """
        if self._concurrency is not None and num_in_flight > self._concurrency:
            return max(latency_seconds, 0.001)
        amounts = {"requests": 1, "tokens": tokens}
        for bucket in self._buckets.values():
            bucket.fill(now)
        wait = max((bucket.seconds_until(amounts[name]) for name, bucket in self._buckets.items()), default=0.0)
        if not wait:
            for name, bucket in self._buckets.items():
                bucket.level -= min(amounts[name], bucket.per_minute)
        return wait

    def headers(self) -> Mapping[str, str]:
        """What is left, as OpenAI says it; nothing of what has no limit."""
        found = {}
        for name, bucket in self._buckets.items():
            found[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
            found[f"x-ratelimit-reset-{name}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
        return found
