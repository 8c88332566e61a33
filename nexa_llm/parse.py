"""An answer made of what a server sent. It costs nothing to do it again, so a better parser may read old answers anew."""

from collections.abc import Mapping
from typing import Any

import orjson

from nexa_core.errors import UserError
from nexa_llm.chat import Answer, Logprobs, Status
from nexa_llm.logprobs import TokenIds

STATUSES: Mapping[str, Status] = {"length": "truncated", "content_filter": "refused"}
"""Of finish reasons; every other is an answer, but for those of `BROKEN_OFF`."""
BROKEN_OFF = ("error", "abort")
"""Finish reasons of an answer that ends where the server broke down, or gave it up; another try may bring it whole.

Source: OpenRouter (`error`, https://openrouter.ai/docs/api-reference/overview); vLLM and SGLang (`abort`).
"""
MOST_COUNTED = 2**31 - 1
"""More tokens than any answer has; their price still is a number that the ledger holds."""
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
        text, refusal, why = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise Unusable(f"{type(error).__name__} in {excerpt(raw)}") from None
    reason = None if why is None else str(why)
    if reason in BROKEN_OFF:
        raise Unusable(f"finish_reason {reason} in {excerpt(raw)}")
    if not isinstance(text, str | None) or (text is None and not refusal and reason is None):
        raise Unusable(f"no text in {excerpt(raw)}")
    if text is None and not refusal and reason not in STATUSES:  # thoughts or calls of tools alone: the model has ended
        text = ""
    status: Status = "refused" if refusal else STATUSES.get(str(reason), "answered")
    prompt_tokens, completion_tokens = _usage(body)
    return Answer(
        status=status,
        request_sha256=request_sha256,
        text=text,
        error=str(refusal) if refusal else None,
        finish_reason=reason,
        model=body["model"] if isinstance(body.get("model"), str) else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprobs=None if refusal else _logprobs(choice, token_ids),
    )


def read_usage(raw: bytes) -> tuple[int, int] | None:
    """The tokens of prompt and answer that any body of JSON counts, also one that is no answer; None where it does not."""
    try:
        prompt_tokens, completion_tokens = _usage(orjson.loads(raw))
    except orjson.JSONDecodeError:
        return None
    return None if prompt_tokens is None or completion_tokens is None else (prompt_tokens, completion_tokens)


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


def _usage(body: Any) -> tuple[int | None, int | None]:
    found = body.get("usage") if isinstance(body, dict) else None
    usage = found if isinstance(found, dict) else {}
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNTED
    return value if is_count else None


def _logprobs(choice: Mapping[str, Any], token_ids: TokenIds | None) -> Logprobs | None:
    if token_ids is None:
        return None
    found = choice.get("logprobs")
    if not isinstance(found, dict) or not isinstance(found.get("content"), list):
        raise Unusable("no logprobs in it, which were asked for")
    try:
        return token_ids.read(found["content"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise Unusable(f"malformed logprobs: {error!r}") from None
