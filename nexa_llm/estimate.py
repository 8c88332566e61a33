"""What asking would take, told from the prompts and from what the store has seen, without a request."""

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_core.config.ask import AskConfig, Price
from nexa_llm.prices import PRICES_AS_OF, as_usd
from nexa_llm.store import KEYS_A_QUESTION

BYTES_A_TOKEN = 4
"""Of English text in usual vocabularies; other languages and code take fewer bytes a token."""


@dataclass(frozen=True)
class Past:
    """Means over the answers of a teacher that are stored."""

    num_answers: int
    completion_tokens: float | None
    latency_seconds: float | None


@dataclass(frozen=True)
class Size:
    """Of requests."""

    text_bytes: int = 0
    """Of messages, tools and what further keys hold, which become the prompt."""
    most_prompt_tokens: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.text_bytes + other.text_bytes, self.most_prompt_tokens + other.most_prompt_tokens)


@dataclass(frozen=True)
class Estimate:
    """What is known of requests before they are sent. `expected_*` is a guess.

    `most_usd` is not exceeded where each request is answered at its first try; a call that is lost and repeated may cost again.
    """

    teacher: str
    num_requests: int
    num_stored: int
    """Found in the store; they cost nothing."""
    is_sampled: bool
    """Whether `num_stored` is told from a sample; then `most_usd` is what all requests may cost."""
    prompt_tokens: int
    expected_completion_tokens: int
    expected_usd: float | None
    most_usd: float | None
    expected_seconds: float | None
    past: Past

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        seen = (
            f"as in {self.past.num_answers:,} answers of the store"
            if self.past.num_answers
            else "the limit, none is stored yet"
        )
        cost = (
            "its price is not known"
            if self.expected_usd is None
            else f"${self.expected_usd:.4f} expected, ${self.most_usd:.4f} at most if every call is answered at its first try"
            + " and none is stored" * self.is_sampled
        )
        about = "about " if self.is_sampled else ""
        seconds = (
            "unknown until the first answers"
            if self.expected_seconds is None
            else f"about {self.expected_seconds:,.0f} s"
        )
        return "\n".join(
            [
                f"teacher   {self.teacher}",
                f"requests  {self.num_requests:,}, of which {about}{self.num_stored:,} are answered in the store already"
                + " (by a sample)" * self.is_sampled,
                f"tokens    about {self.prompt_tokens:,} of prompts ({BYTES_A_TOKEN} bytes a token), "
                f"{self.expected_completion_tokens:,} of answers ({seen})",
                f"cost      {cost} (prices as of {PRICES_AS_OF} where the settings give none)",
                f"time      {seconds}",
                "nothing was sent; a limit that holds whatever is lost is --max-cost-usd",
            ]
        )


def estimate(
    config: AskConfig,
    *,
    num_requests: int,
    size: Size,
    looked_up: Mapping[str, Size],
    price: Price | None,
    store: Path,
) -> Estimate:
    """What the requests that are not stored yet would take.

    Args:
        num_requests: all of them, and `size` of them.
        looked_up: the key of each request, or of some of them, with its size: what is stored is told from these; empty
            where nothing is kept in the store.
    """
    past, stored = read_past(store, config.teacher), stored_keys(store, list(looked_up))
    is_sampled = 0 < len(looked_up) < num_requests
    if is_sampled:
        share_new = 1 - len(stored) / max(1, len(looked_up))
        num_new, new_bytes = round(num_requests * share_new), size.text_bytes * share_new
        most_new, most_prompt = num_requests, size.most_prompt_tokens
    else:
        old = sum((looked_up[key] for key in stored), Size())
        num_new, new_bytes = num_requests - len(stored), size.text_bytes - old.text_bytes
        most_new, most_prompt = num_new, size.most_prompt_tokens - old.most_prompt_tokens
    prompt_tokens = round(new_bytes / BYTES_A_TOKEN)
    each = config.sampling.max_tokens if past.completion_tokens is None else past.completion_tokens
    tokens = (prompt_tokens, round(num_new * each))
    most = (most_prompt, most_new * config.sampling.max_tokens)
    return Estimate(
        teacher=config.teacher,
        num_requests=num_requests,
        num_stored=num_requests - num_new,
        is_sampled=is_sampled,
        prompt_tokens=tokens[0],
        expected_completion_tokens=tokens[1],
        expected_usd=_cost(price, tokens),
        most_usd=_cost(price, most),
        expected_seconds=_seconds(config, past, num_new, sum(tokens)),
        past=past,
    )


def stored_keys(store: Path, keys: Sequence[str]) -> set[str]:
    """Those of the keys whose answers are stored."""
    found: set[str] = set()
    if not store.exists():
        return found
    with _reading(store) as db:
        for start in range(0, len(keys), KEYS_A_QUESTION):
            some = keys[start : start + KEYS_A_QUESTION]
            marks = ",".join("?" * len(some))
            found |= {key for (key,) in db.execute(f"select key from answers where key in ({marks})", some)}
    return found


def read_past(store: Path, teacher: str) -> Past:
    if not store.exists():
        return Past(0, None, None)
    with _reading(store) as db:
        row = db.execute(
            "select count(*), avg(completion_tokens), avg(latency_seconds) from calls join answers on answers.call = calls.id "
            "where teacher = ? or substr(teacher, 1, ?) = ?",
            (teacher, len(f"{teacher} at "), f"{teacher} at "),  # a server's is written down with its address
        ).fetchone()
    return Past(*row)


@contextlib.contextmanager
def _reading(store: Path) -> Any:
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
        yield db


def _cost(price: Price | None, tokens: tuple[int, int]) -> float | None:
    if price is None:
        return None
    prices = price.picousd_per_token()
    return as_usd(tokens[0] * prices[0] + tokens[1] * prices[1])


def _seconds(config: AskConfig, past: Past, num_new: int, num_tokens: int) -> float | None:
    """The slowest of what limits the pace."""
    pace = config.pace
    at_least = [0.0]
    if pace.requests_per_minute:
        at_least.append(num_new / pace.requests_per_minute * 60)
    if pace.tokens_per_minute:
        at_least.append(num_tokens / pace.tokens_per_minute * 60)
    if past.latency_seconds is None:
        return max(at_least) or None
    at_once = pace.concurrency if config.provider == "openai" else 1
    return max(*at_least, num_new * past.latency_seconds / at_once)
