"""What the simulator would have charged, to the picodollar, and for which calls."""

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from nexa_core.errors import UserError

PICOUSD_PER_USD = 10**12
TOKENS_PER_PRICE = 10**6


@dataclass(frozen=True)
class Prices:
    """Of one token, in picodollars."""

    prompt_picousd: int
    completion_picousd: int

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        return prompt_tokens * self.prompt_picousd + completion_tokens * self.completion_picousd


def parse_price(text: str, option: str) -> int:
    """Picodollars per token, of a price in dollars per million tokens.

    Raises:
        UserError: it is no price, or has more than six decimals, so that a token would cost a fraction of a picodollar.
    """
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal(-1)
    if not price.is_finite() or price < 0:
        raise UserError(f"'{option} {text}' is no price: give dollars per million tokens, like 0.15.")
    picousd = price * (PICOUSD_PER_USD // TOKENS_PER_PRICE)
    if picousd != picousd.to_integral_value():
        raise UserError(f"'{option} {text}' has more than six decimals; a token is billed in whole picodollars.")
    return int(picousd)


@dataclass(slots=True)
class Call:
    """All attempts that were made under one client request id."""

    num_pending: int = 0
    num_billed: int = 0
    picousd: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        state = "pending" if self.num_pending else "billed" if self.num_billed else "failed"
        return {
            "state": state,
            "picousd": self.picousd,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


class Bill:
    """The total, and each call that had an id; grows by what is charged and by how requests end."""

    def __init__(self, prices: Prices):
        self._prices = prices
        self._calls: dict[str, Call] = {}
        self._total = Call()
        self._outcomes: Counter[str] = Counter()
        self._num_in_flight = self._largest_in_flight = 0

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    def enter(self) -> None:
        """A request is there."""
        self._num_in_flight += 1
        self._largest_in_flight = max(self._largest_in_flight, self._num_in_flight)

    def leave(self) -> None:
        """Its client has its answer, or is gone."""
        self._num_in_flight -= 1

    def open(self, call_id: str | None) -> Call:
        """The call of this id, with one more attempt whose end is not known yet."""
        call = Call() if call_id is None else self._calls.setdefault(call_id, Call())
        call.num_pending += 1
        self._total.num_pending += 1
        return call

    def charge(self, call: Call, outcome: str, *, prompt_tokens: int, completion_tokens: int) -> None:
        """The attempt's answer was generated."""
        for each in (call, self._total):
            each.num_billed += 1
            each.picousd += self._prices.cost(prompt_tokens, completion_tokens)
            each.prompt_tokens += prompt_tokens
            each.completion_tokens += completion_tokens
        self.close(call, outcome)

    def close(self, call: Call, outcome: str) -> None:
        """The attempt has ended so."""
        call.num_pending -= 1
        self._total.num_pending -= 1
        self._outcomes[outcome] += 1

    def call(self, call_id: str) -> Call | None:
        return self._calls.get(call_id)

    def as_json(self) -> dict[str, Any]:
        return {
            "answers": self._total.num_billed,
            "prompt_tokens": self._total.prompt_tokens,
            "completion_tokens": self._total.completion_tokens,
            "picousd": self._total.picousd,
            "usd": format(Decimal(self._total.picousd) / PICOUSD_PER_USD, "f"),
            "pending": self._total.num_pending,
            "requests": dict(sorted(self._outcomes.items())),
            "largest_in_flight": self._largest_in_flight,
        }
