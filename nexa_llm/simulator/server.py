"""The simulator's HTTP server: an OpenAI-compatible teacher on loopback."""

import asyncio
import contextlib
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web
from multidict import CIMultiDict
from xxhash import xxh3_64_intdigest, xxh3_128_digest, xxh3_128_hexdigest

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_llm.simulator.answers import Answerer
from nexa_llm.simulator.bill import Bill, Call, Prices
from nexa_llm.simulator.faults import FaultPlan
from nexa_llm.simulator.limits import Limits
from nexa_llm.simulator.logprobs import token_logprobs
from nexa_llm.simulator.request import BadRequest, ChatAsked, read_request
from nexa_llm.simulator.responses import (
    CREATED,
    REFUSAL,
    Generated,
    Reply,
    bad_request,
    completion,
    error,
    faulty,
    flagged,
    rate_limited,
    without_choices,
)
from nexa_llm.simulator.tokens import Taken, Tokens, count_prompt_tokens

MODEL = "simulated-teacher"
MOST_BODY_BYTES = 2**26
SECONDS_BEFORE_RESET = 0.02
"""So that the half of an answer that was sent is there before the reset, which would overtake it."""
AT_ONCE = ("rate_limit", "rate_limit_date")
SILENT = ("reset", "reset_body", "hang")

Request = web.BaseRequest


@dataclass(frozen=True)
class Behaviour:
    """Everything that decides what the simulator does, but for the requests."""

    seed: int
    faults: FaultPlan
    answerer: Answerer
    tokens: Tokens
    prices: Prices
    limits: Limits
    models: tuple[str, ...] = ()
    """The only ones that it knows; any where there are none."""
    latency_seconds: float = 0.0
    latency_spread: float = 0.0
    """The share by which a request's own latency may be above or below."""
    retry_after_seconds: float = 1.0


def serve(
    behaviour: Behaviour, *, host: str, port: int, bill_path: Path | None, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Answer requests until SIGTERM or SIGINT; the bill.

    Args:
        port: 0 for a free one.
        bill_path: Where the bill is written at the end.
        announce: Is told the base URL as soon as there is an answer at it.

    Raises:
        UserError: the address cannot be listened at.
    """
    bill = asyncio.run(_serve(Simulator(behaviour), host, port, announce))
    if bill_path is not None:
        durable.write_json(bill_path, bill)
    return bill


async def _serve(simulator: "Simulator", host: str, port: int, announce: Callable[[str], None]) -> dict[str, Any]:
    ended = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    # A handler is cancelled when its client is gone, so that none waits forever; the bill does not depend on handlers.
    server = web.Server(
        simulator.respond,
        request_factory=_make_request,
        handler_cancellation=True,
        access_log=None,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
    except OSError as problem:
        raise UserError(f"Cannot listen at {host}:{port}: {problem.strerror}. Give another --port, or 0.") from problem
    announce(f"http://{host}:{runner.addresses[0][1]}/v1")
    await ended.wait()
    bill = simulator.bill.as_json()
    await runner.cleanup()
    return bill


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Request:
    loop = asyncio.get_running_loop()
    return Request(message, payload, protocol, writer, task, loop, client_max_size=MOST_BODY_BYTES)


class Simulator:
    """Answers requests, and keeps the bill of what it answered."""

    def __init__(self, behaviour: Behaviour):
        self._is = behaviour
        self._times_asked: Counter[bytes] = Counter()
        self.bill = Bill(behaviour.prices)

    async def respond(self, request: Request) -> web.StreamResponse:
        path, method = request.path, request.method
        if path == "/v1/chat/completions":
            return await self._complete(request) if method == "POST" else _wrong_method(method, path)
        if method != "GET":
            return _wrong_method(method, path)
        if path == "/v1/models":
            return _json(200, {"object": "list", "data": [_model(name) for name in self._is.models or (MODEL,)]})
        if path == "/health":
            return _json(200, {"status": "ok"})
        if path == "/bill":
            return _json(200, self.bill.as_json())
        if path.startswith("/v1/calls/"):
            return self._call(unquote(path.removeprefix("/v1/calls/")))
        return _send(error(404, f"Unknown request URL: {method} {path}.", "invalid_request_error", code="unknown_url"))

    def _call(self, call_id: str) -> web.Response:
        call = self.bill.call(call_id)
        if call is None:
            return _send(error(404, f"No call with the id '{call_id}'.", "invalid_request_error", code="unknown_call"))
        return _json(200, call.as_json())

    async def _complete(self, request: Request) -> web.StreamResponse:
        self.bill.enter()
        try:
            return await self._attempt(request, await request.read())
        finally:
            self.bill.leave()

    async def _attempt(self, request: Request, body: bytes) -> web.StreamResponse:
        call = self.bill.open(request.headers.get("x-client-request-id"))
        digest = xxh3_128_digest(body)
        self._times_asked[digest] = attempt = self._times_asked[digest] + 1
        latency_seconds = self._latency_seconds(digest)
        headers = {
            "x-request-id": f"req_{xxh3_128_hexdigest(b'%d %d ' % (self._is.seed, attempt) + digest)}",
            "openai-processing-ms": str(round(latency_seconds * 1000)),
        }
        try:
            asked = read_request(body)
            answer_digest = asked.digest(self._is.seed)
            answer = self._generate(asked, answer_digest)
        except BadRequest as problem:
            self.bill.close(call, "bad_request")
            return _send(bad_request(problem), headers)
        wait = self._is.limits.seconds_to_wait(
            asyncio.get_running_loop().time(),
            tokens=answer.prompt_tokens + (asked.max_tokens or answer.completion_tokens),
            num_in_flight=self.bill.num_in_flight,
            latency_seconds=latency_seconds,
        )
        headers.update(self._is.limits.headers())
        if wait:
            self.bill.close(call, "over_limit")
            return _send(rate_limited(wait, f"Rate limit reached. Please try again in {wait:.3f}s."), headers)
        whole = completion(answer, model=asked.model, digest=answer_digest)
        fault = self._is.faults.fault(digest, attempt)
        if fault is None:
            await self._pass(latency_seconds, lambda: self._charge(call, answer))
            return _send(flagged() if answer.is_flagged else Reply(200, whole), headers)
        await self._pass(0.0 if fault in AT_ONCE else latency_seconds, lambda: self.bill.close(call, fault))
        if fault in SILENT:
            await _fall_silent(request, fault, whole)
        reply = faulty(
            fault,
            authorization=request.headers.get("authorization", ""),
            whole=whole,
            empty=without_choices(model=asked.model, digest=answer_digest),
            retry_after_seconds=self._is.retry_after_seconds,
        )
        return _send(reply, headers)

    def _latency_seconds(self, digest: bytes) -> float:
        spread = self._is.latency_spread
        place = 2 * xxh3_64_intdigest(b"latency %d " % self._is.seed + digest) / 2**64 - 1 if spread else 0.0
        return self._is.latency_seconds * (1 + spread * place)

    def _generate(self, asked: ChatAsked, digest: bytes) -> Generated:
        if self._is.models and asked.model not in self._is.models:
            message = f"The model `{asked.model}` does not exist. There are: {', '.join(self._is.models)}"
            raise BadRequest(message, param="model", code="model_not_found", status=404)
        ending = self._is.faults.ending(digest)
        if ending == "refusal":
            taken, finish_reason = self._is.tokens.take(REFUSAL, None), "stop"
        else:
            taken, finish_reason = self._take(asked, self._is.answerer.answer(asked, digest), ending)
        logprobs = None
        if asked.top_logprobs is not None:
            logprobs = token_logprobs(
                taken.pieces,
                digest,
                num_top=asked.top_logprobs,
                vocabulary=self._is.tokens.vocabulary,
                is_sampled=asked.temperature > 0,
            )
        return Generated(
            text=None if ending == "refusal" else taken.text,
            refusal=taken.text if ending == "refusal" else None,
            finish_reason=finish_reason,
            prompt_tokens=count_prompt_tokens(asked.messages, asked.tools),
            completion_tokens=len(taken.pieces),
            logprobs=logprobs,
            is_flagged=ending == "flagged",
        )

    def _take(self, asked: ChatAsked, text: str, ending: str | None) -> tuple[Taken, str]:
        """As much of a text as is given, and why it ends there."""
        for stop in asked.stop:
            text = text.partition(stop)[0]
        taken = self._is.tokens.take(text, asked.max_tokens)
        if ending is not None:
            half = self._is.tokens.take(text, max(1, len(taken.pieces) // 2))
            return half, "length" if ending == "truncated" else "content_filter"
        return taken, "stop" if taken.is_whole else "length"

    def _charge(self, call: Call, answer: Generated) -> None:
        self.bill.charge(
            call, answer.outcome, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
        )

    async def _pass(self, seconds: float, note: Callable[[], None]) -> None:
        """Wait, and note what happened then, whether or not anybody waits until then."""
        loop = asyncio.get_running_loop()
        passed: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            note()
            if not passed.done():
                passed.set_result(None)

        if seconds:
            loop.call_later(seconds, end)
        else:
            end()
        await passed


async def _fall_silent(request: Request, fault: str, whole: bytes) -> None:
    """Reset the connection, or leave it as it is; does not come back."""
    transport = request.transport
    if transport is not None and fault != "hang":
        if fault == "reset_body":
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(whole)}\r\n\r\n"
            transport.write(head.encode() + whole[: len(whole) // 2])
            await asyncio.sleep(SECONDS_BEFORE_RESET)
        with contextlib.suppress(OSError):  # the client may have gone first
            # Closed without waiting for what is on its way: a reset, and no end that looks like a good one.
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await asyncio.get_running_loop().create_future()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "simulator"}


def _json(status: int, value: Any) -> web.Response:
    return _send(Reply(status, orjson.dumps(value)))


def _wrong_method(method: str, path: str) -> web.Response:
    return _send(
        error(405, f"Not allowed to {method} on {path}.", "invalid_request_error", code="method_not_supported")
    )


def _send(reply: Reply, headers: dict[str, str] | None = None) -> web.Response:
    all_ = CIMultiDict({**(headers or {}), **reply.headers, "Content-Type": reply.content_type})
    return web.Response(status=reply.status, body=reply.body, headers=all_)
