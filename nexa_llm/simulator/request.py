"""A chat request as it was sent: read, checked, and refused where the simulator would have to ignore something."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from xxhash import xxh3_128_digest

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_TOP_LOGPROBS = 20
MOST_STOPS = 4

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
}
"""Parameters of the protocol that would change an answer, with the values at which they change nothing."""
WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls"})
"""Parameters that change no answer of a real server either."""


class BadRequest(Exception):
    """A request that no retry will make better."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True, slots=True)
class ChatAsked:
    model: str
    messages: tuple[tuple[str, str], ...]
    """Role and text of each."""
    tools: bytes
    """Their JSON; empty without tools."""
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    top_logprobs: int | None
    """None where no logprobs are wanted."""

    def digest(self, simulator_seed: int) -> bytes:
        """Of all that decides the answer's text; at temperature 0 the sampling seed does not."""
        sampling = (self.temperature, self.top_p, self.seed) if self.temperature else None
        # Where an answer stops is not what it says: a longer limit shows more of the same text.
        return xxh3_128_digest(orjson.dumps((simulator_seed, self.model, self.messages, sampling)) + self.tools)

    def last_user_text(self) -> str:
        """What an answer file is searched for."""
        return next((text for role, text in reversed(self.messages) if role == "user"), "")


def read_request(body: bytes) -> ChatAsked:
    """The request that the body of ``POST /v1/chat/completions`` makes.

    Raises:
        BadRequest: it is no such request, or wants what the simulator does not do.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadRequest("The body has to be a JSON object.")
    given = {name: value for name, value in given.items() if value is not None}
    asked = ChatAsked(
        model=_taken(given, "model", "a name", lambda value: isinstance(value, str) and value != ""),
        messages=_messages(given.pop("messages", None)),
        tools=_tools(given.pop("tools", None)),
        max_tokens=_max_tokens(given),
        temperature=_taken(given, "temperature", "from 0 to 2", lambda value: 0 <= _number(value) <= 2, 1.0),
        top_p=_taken(given, "top_p", "above 0, at most 1", lambda value: 0 < _number(value) <= 1, 1.0),
        seed=_taken(given, "seed", "an integer", _is_integer, None),
        stop=_stop(given.pop("stop", ())),
        top_logprobs=_top_logprobs(given),
    )
    _refuse_the_rest(given)
    return asked


_MISSING = object()


def _taken(
    given: dict[str, Any], name: str, allowed: str, is_good: Callable[[Any], bool], default: Any = _MISSING
) -> Any:
    value = given.pop(name, default)
    if value is _MISSING:
        raise BadRequest(f"'{name}' is missing: give {allowed}.", param=name)
    if value is not default and not is_good(value):
        raise BadRequest(f"Invalid '{name}': {value!r}. Allowed: {allowed}.", param=name)
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _messages(given: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, list) or not given:
        raise BadRequest("'messages' has to be a list of at least one message.", param="messages")
    return tuple(_message(index, message) for index, message in enumerate(given))


def _message(index: int, given: Any) -> tuple[str, str]:
    where = f"messages[{index}]"
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        raise BadRequest(f"'{where}' has to have a role. Allowed: {', '.join(ROLES)}.", param=where)
    content = given.get("content")
    if isinstance(content, str):
        return given["role"], content
    if content is None and given["role"] == "assistant":
        return given["role"], ""
    if not isinstance(content, list) or not all(_is_text_part(part) for part in content):
        raise BadRequest(f"'{where}.content' has to be text or a list of text parts.", param=f"{where}.content")
    return given["role"], "".join(part["text"] for part in content)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _tools(given: Any) -> bytes:
    if given is not None and not isinstance(given, list):
        raise BadRequest("'tools' has to be a list.", param="tools")
    return orjson.dumps(given, option=orjson.OPT_SORT_KEYS) if given else b""


def _max_tokens(given: dict[str, Any]) -> int | None:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    if len(names) == 2:
        raise BadRequest("Give either 'max_tokens' or 'max_completion_tokens', not both.", param=names[0])
    if not names:
        return None
    value: int = _taken(given, names[0], "an integer above 0", lambda value: _is_integer(value) and value > 0)
    return value


def _stop(given: Any) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else given
    if not isinstance(stops, list | tuple) or len(stops) > MOST_STOPS:
        raise BadRequest(f"'stop' has to be a text or at most {MOST_STOPS} of them.", param="stop")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest("'stop' has to hold texts that are not empty.", param="stop")
    return tuple(stops)


def _top_logprobs(given: dict[str, Any]) -> int | None:
    wanted = _taken(given, "logprobs", "true or false", lambda value: isinstance(value, bool), False)
    allowed = f"an integer from 0 to {MOST_TOP_LOGPROBS}"
    count: int | None = _taken(
        given, "top_logprobs", allowed, lambda value: _is_integer(value) and 0 <= value <= MOST_TOP_LOGPROBS, None
    )
    if count is not None and not wanted:
        raise BadRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    return (count or 0) if wanted else None


def _refuse_the_rest(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ()):
            continue
        if name == "stream":
            raise BadRequest("The simulator does not stream; leave 'stream' out or give false.", param=name)
        if name in NEUTRAL:
            allowed = " or ".join(str(each) for each in NEUTRAL[name])
            raise BadRequest(f"The simulator knows '{name}' only as {allowed}; {value!r} was given.", param=name)
        raise BadRequest(f"Unrecognized request argument supplied: {name}", param=name)
