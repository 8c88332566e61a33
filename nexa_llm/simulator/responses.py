"""The bodies of the protocol: answers, errors and broken ones, as OpenAI's server words them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson

from nexa_llm.simulator.request import BadRequest

CREATED = 1_700_000_000
"""The time that stands in every answer, so that equal requests get equal bytes."""
REFUSAL = "I can't help with that."

FLAGGED = "The response was filtered due to the prompt triggering the content management policy."


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True)
class Generated:
    """An answer as it goes out."""

    text: str | None
    refusal: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: list[dict[str, Any]] | None
    is_flagged: bool = False
    """Whether a content filter stops it, so that an error goes out."""

    @property
    def outcome(self) -> str:
        """Its name on the bill."""
        if self.refusal is not None or self.finish_reason == "content_filter":
            return "refused"
        return "truncated" if self.finish_reason == "length" else "answered"


def completion(answer: Generated, *, model: str, digest: bytes) -> bytes:
    message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(answer),
        "finish_reason": answer.finish_reason,
    }
    usage = (answer.prompt_tokens, answer.completion_tokens)
    return _completion([choice], model=model, digest=digest, usage=usage)


def _logprobs(answer: Generated) -> dict[str, Any] | None:
    """Those of a refusal have a place of their own."""
    if answer.logprobs is None:
        return None
    names = ("refusal", "content") if answer.refusal is not None else ("content", "refusal")
    return dict(zip(names, (answer.logprobs, None), strict=True))


def without_choices(*, model: str, digest: bytes) -> bytes:
    """A completion that holds nothing and has used nothing."""
    return _completion([], model=model, digest=digest, usage=(0, 0))


def _completion(choices: list[dict[str, Any]], *, model: str, digest: bytes, usage: tuple[int, int]) -> bytes:
    return orjson.dumps(
        {
            "id": f"chatcmpl-{digest.hex()}",
            "object": "chat.completion",
            "created": CREATED,
            "model": model,
            "choices": choices,
            "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }
    )


def error(status: int, message: str, kind: str, *, code: str | None = None, param: str | None = None) -> Reply:
    return Reply(status, orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}))


def flagged() -> Reply:
    """As Azure OpenAI words it for a prompt that its content filter stops."""
    told = {
        "message": FLAGGED,
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"violence": {"filtered": True, "severity": "medium"}},
        },
    }
    return Reply(400, orjson.dumps({"error": told}))


def bad_request(problem: BadRequest) -> Reply:
    return error(problem.status, str(problem), "invalid_request_error", code=problem.code, param=problem.param)


def rate_limited(seconds: float, message: str, *, as_date: bool = False) -> Reply:
    """429 that says how long to wait: in seconds, or as the next whole second after it."""
    if as_date:
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        if at.microsecond:
            at = at.replace(microsecond=0) + timedelta(seconds=1)
        after = format_datetime(at, usegmt=True)
    else:
        after = f"{math.ceil(seconds * 1000) / 1000:g}"
    reply = error(429, message, "requests", code="rate_limit_exceeded")
    return Reply(reply.status, reply.body, {"retry-after": after})


def faulty(fault: str, *, authorization: str, whole: bytes, empty: bytes, retry_after_seconds: float) -> Reply:
    """What goes out in place of the answer `whole`, for a fault that sends anything.

    Args:
        authorization: The request's header, for the server that tells too much.
        empty: The completion without choices.
    """
    match fault:
        case "rate_limit" | "rate_limit_date":
            message = "Rate limit reached. Please try again later."
            return rate_limited(retry_after_seconds, message, as_date=fault == "rate_limit_date")
        case "server_error":
            return error(
                500, "The server had an error while processing your request. Sorry about that!", "server_error"
            )
        case "bad_gateway":
            page = b"<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>\n"
            return Reply(502, page, content_type="text/html")
        case "unavailable":
            return error(
                503, "The engine is currently overloaded, please try again later.", "service_unavailable_error"
            )
        case "unauthorized":
            return error(401, "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key")
        case "echo_key":
            return error(500, f"Upstream failed; request headers: Authorization: {authorization}", "server_error")
        case "truncated_json":
            return Reply(200, whole[: len(whole) // 2])
        case "malformed":
            return Reply(200, b'{"id": "chatcmpl-", "choices": [{"message": {"content": oops')
        case "empty_choices":
            return Reply(200, empty)
    raise ValueError(f"the fault '{fault}' sends nothing")
