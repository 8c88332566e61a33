"""An answer made of what a server sent. It costs nothing to do it again, so a better parser may read old answers anew."""

from collections.abc import Mapping
from typing import Any

import orjson

from nexa_core.errors import UserError
from nexa_llm.chat import Answer, Logprobs, Status
from nexa_llm.logprobs import TokenIds

STATUSES: Mapping[str, Status] = {"length": "truncated", "content_filter": "refused"}
"""Of finish reasons; every other is an answer."""


class Unusable(ValueError):
    """What came is no answer: not JSON, or not of this protocol."""


def parse_answer(raw: bytes, request_sha256: str, *, token_ids: TokenIds | None = None) -> Answer:
    """The answer in a body of OpenAI's chat completions protocol; without price and latency.

    Raises:
        Unusable: it is none.
    """
    try:
        body = orjson.loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise Unusable(f"{type(error).__name__} in {excerpt(raw)}") from None
    if not isinstance(text, str | None) or (text is None and not refusal and reason not in STATUSES):
        raise Unusable(f"no text in {excerpt(raw)}")
    status: Status = "refused" if refusal else STATUSES.get(str(reason), "answered")
    return Answer(
        status=status,
        request_sha256=request_sha256,
        text=text,
        error=str(refusal) if refusal else None,
        finish_reason=None if reason is None else str(reason),
        model=body.get("model"),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        logprobs=None if refusal else _logprobs(choice, token_ids),
    )


def excerpt(raw: bytes) -> str:
    """The beginning of a body, on one line, for a message."""
    return repr(raw[:200].decode("utf-8", "replace"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _logprobs(choice: Mapping[str, Any], token_ids: TokenIds | None) -> Logprobs | None:
    if token_ids is None:
        return None
    found = choice.get("logprobs")
    if not isinstance(found, dict) or not isinstance(found.get("content"), list):
        raise Unusable("no logprobs in it, which were asked for")
    try:
        return token_ids.read(found["content"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise Unusable(f"malformed logprobs: {error!r}") from None
