"""What goes wrong with which request: a pure function of the seed, the request and how often it was asked."""

from dataclasses import dataclass
from types import MappingProxyType

from xxhash import xxh3_64_intdigest

from nexa_core.errors import UserError
from nexa_core.lookup import unknown

FAULTS = MappingProxyType(
    {
        "rate_limit": "429 at once, Retry-After in seconds (a fraction where it is one)",
        "rate_limit_date": "429 at once, Retry-After as an HTTP date",
        "server_error": "500",
        "bad_gateway": "502 with a page of HTML, as proxies give",
        "unavailable": "503",
        "unauthorized": "401",
        "echo_key": "500 whose body repeats the Authorization header",
        "reset": "the connection is reset before the answer",
        "reset_body": "the connection is reset in the middle of the answer",
        "hang": "no answer, ever",
        "truncated_json": "200 whose body ends too early",
        "malformed": "200 whose body is no JSON",
        "empty_choices": "200 without a choice",
    }
)
"""What can happen to an attempt; the next attempt may fare better. Nobody is billed for any of them."""

ENDINGS = MappingProxyType(
    {
        "refusal": "message.refusal in place of content",
        "content_filter": "half of the answer, finish_reason content_filter",
        "flagged": "400 with the code content_filter, as Azure OpenAI gives for a prompt that its filter stops, and bills",
        "truncated": "half of the answer, finish_reason length",
    }
)
"""What an answer can be instead of whole. It is generated and billed, and the same however often it is asked for."""


@dataclass(frozen=True)
class FaultPlan:
    """The share of attempts that meet each of FAULTS, and the share of requests that end in each of ENDINGS."""

    seed: int
    faults: tuple[tuple[str, float], ...] = ()
    endings: tuple[tuple[str, float], ...] = ()

    def fault(self, body_digest: bytes, attempt: int) -> str | None:
        """What happens to the `attempt`-th time that a body is sent."""
        if not self.faults:
            return None
        return _drawn(self.faults, b"fault %d %d " % (self.seed, attempt) + body_digest)

    def ending(self, answer_digest: bytes) -> str | None:
        """How an answer ends if not whole; it does not depend on the attempt, so that an answer asked for again is the same."""
        if not self.endings:
            return None
        return _drawn(self.endings, b"ending %d " % self.seed + answer_digest)


def parse_faults(text: str, *, seed: int) -> FaultPlan:
    """The plan that ``rate_limit=0.02,reset=0.005`` describes.

    Raises:
        UserError: a name is unknown or stands twice, or a share is no number from 0 to 1, or they add up to more than 1.
    """
    shares: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, share = (each.strip() for each in part.partition("="))
        if name not in FAULTS and name not in ENDINGS:
            raise UserError(unknown("fault", name, (*FAULTS, *ENDINGS)))
        if name in shares:
            raise UserError(f"The fault '{name}' is given twice in --faults '{text}'.")
        shares[name] = _share(name, share)
    plan = FaultPlan(seed, _those(shares, FAULTS), _those(shares, ENDINGS))
    for group in (plan.faults, plan.endings):
        if (total := sum(share for _, share in group)) > 1 + 1e-9:
            names = ", ".join(name for name, _ in group)
            raise UserError(f"The shares of {names} add up to {total:g}; they exclude each other, so give at most 1.")
    return plan


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"'{name}={text}' in --faults is no share: give a number from 0 to 1, like {name}=0.02.")
    return share


def _those(shares: dict[str, float], names: MappingProxyType[str, str]) -> tuple[tuple[str, float], ...]:
    return tuple((name, shares[name]) for name in names if shares.get(name))


def _drawn(shares: tuple[tuple[str, float], ...], key: bytes) -> str | None:
    place = xxh3_64_intdigest(key) / 2**64
    for name, share in shares:
        place -= share
        if place < 0:
            return name
    return None
