"""An answer made of what a server sent. It costs nothing to do it again, so a better parser may read old answers anew."""

from collections.abc import Mapping
from typing import Any

import orjson

from nexa_core.errors import UserError
from nexa_llm.chat import Answer, Logprobs, Status
from nexa_llm.logprobs import TokenIds

STATUSES: Mapping[str, Status] = {"length": "truncated", "content_filter": "refused"}
"""Of finish reasons; every other is an answer."""
FLAGGED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
"""Codes of an error that say that the prompt was not let through to the model, or the answer not out.

Source: Azure OpenAI's content filter (HTTP 400, `error.code` and `error.innererror.code`); LiteLLM's proxy for the second.
"""
LONGEST_REASON = 300


class Unusable(ValueError):
    """What came is no answer: not JSON, or not of this protocol."""


def parse_answer(raw: bytes, request_sha256: str, *, token_ids: TokenIds | None = None) -> Answer:
    """The answer in a body of OpenAI's chat completions protocol; without price and latency.

    Raises:
        Unusable: it is none.
    """
    try:
        body = orjson.loads(raw)
        if (why := _why_flagged(body)) is not None:
            return Answer(status="refused", request_sha256=request_sha256, error=why, finish_reason="content_filter")
        choice = body["choices"][0]
        message = choice.get("message") or {} if choice.get("finish_reason") == "content_filter" else choice["message"]
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


def is_flagged(raw: bytes) -> bool:
    """Whether an error body says that a filter of the server's stopped this one request: it is refused, now and later."""
    try:
        return _why_flagged(orjson.loads(raw)) is not None
    except orjson.JSONDecodeError:
        return False


def _why_flagged(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None
    inner, metadata = error.get("innererror"), error.get("metadata")
    codes = {str(error.get("code")), str(inner.get("code")) if isinstance(inner, dict) else ""}
    # OpenRouter says it with HTTP 403, and what was flagged in `metadata`.
    if codes.isdisjoint(FLAGGED) and not (isinstance(metadata, dict) and "flagged_input" in metadata):
        return None
    return " ".join(str(error.get("message") or "stopped by the server's content filter").split())[:LONGEST_REASON]


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
