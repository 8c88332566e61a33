"""Buying one answer: tried until it comes, within the budget, at the server's pace, on the disk before it is read."""

import asyncio
import contextlib
import random
import time
import uuid
from dataclasses import dataclass
from typing import Any

from nexa_core.config.ask import Pace
from nexa_core.errors import GateError, NexaError, UserError
from nexa_llm.budget import Budget, most_prompt_tokens
from nexa_llm.chat import Answer, ChatRequest
from nexa_llm.openai import NotConnected, OpenAi, Response
from nexa_llm.pace import Breaker, Clock, Gate, RateLimit
from nexa_llm.parse import Unusable, is_flagged
from nexa_llm.prices import as_usd
from nexa_llm.reading import Reader
from nexa_llm.settling import outcome_of, settle_answered
from nexa_llm.store import Call, Store, Stored

SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.25, 30.0
MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
OVERLOADED = {429, 503, 529}
BROKEN_DOWN = range(500, 600)
"""Statuses after which an answer may have been made and billed all the same, but for those of a server that took nothing on."""
TOO_SLOW = 408
FORBIDDEN = 403
FLAGGING = {400, 403}
"""Statuses with which servers say that a content filter stopped a request."""
MALFORMED = {400, 422}
"""Statuses that say that a request is wrong, by its prompt or by what it shares with all others."""
CONCERNS_ALL = {401, 402, 403, 404, 405}
"""Statuses that the next request would get as well: a wrong key, an empty account, an unknown model."""
MOST_MALFORMED = 50
"""Requests that may be called wrong before there is any answer."""


class OutOfBudget(GateError):
    """The next request might cost more than is left; everything that was paid for is kept."""


@dataclass(frozen=True)
class Job:
    """A request whose answer is to be bought."""

    index: int
    request: ChatRequest
    key: str


@dataclass(frozen=True)
class Failure:
    """A try that brought nothing, and may succeed later."""

    error: str
    retry_after_seconds: float | None = None
    is_told_to_wait: bool = False
    """Whether a server that is too busy has said for how long; no number of tries is too many then, only too long a time."""


class Buyer:
    """Buys answers of one server, as many at once as it bears. Made and used in one event loop."""

    def __init__(
        self,
        teacher: OpenAi,
        store: Store,
        reader: Reader,
        pace: Pace,
        session: Any,
        *,
        purpose: str,
        max_cost_usd: float | None,
    ):
        self._teacher, self._store, self._reader, self._session = teacher, store, reader, session
        self._pace, self._purpose = pace, purpose
        clock = time.monotonic
        self.budget, self.gate = Budget(max_cost_usd), Gate(pace.concurrency, clock)
        self._breaker = Breaker(self.gate, pace.give_up_after_seconds, clock)
        self._requests_limit = RateLimit(pace.requests_per_minute, clock) if pace.requests_per_minute else None
        self._tokens_limit = RateLimit(pace.tokens_per_minute, clock) if pace.tokens_per_minute else None
        self._random = random.Random(0)  # of pauses: no result depends on it
        self._settled, self._halted = asyncio.Event(), asyncio.Event()
        self._buys_nothing_more = self._has_answered = False
        self._num_malformed = 0
        self.knows_answers = False
        """Whether this teacher has ever answered such requests, now or before."""

    def stop(self, *, at_once: bool) -> None:
        """Have nobody wait any longer.

        Args:
            at_once: whether what was not sent yet is not sent any more.
        """
        self._buys_nothing_more = self._buys_nothing_more or at_once
        self._halted.set()
        self._settled.set()
        self._teacher.stop_waiting()
        for each in (self.gate, self._requests_limit, self._tokens_limit):
            if each is not None:
                each.stop()

    async def buy(self, job: Job) -> Answer | None:
        """The answer, or a failed one where none came; None where the run stops before there is one.

        Raises:
            OutOfBudget: what is left may not suffice for it.
            UserError: the server refuses the key, or does not know the model.
            NexaError: nothing was answered for a long time.
        """
        await self._teacher.ready()
        tries = _Tries(self._pace, time.monotonic)
        while True:
            outcome = await self._try(job)
            if not isinstance(outcome, Failure):
                return outcome
            if self._breaker.is_hopeless:
                raise NexaError(
                    f"{self._teacher.public_url} has answered nothing for {self._pace.give_up_after_seconds:g} s: "
                    f"{outcome.error}. Every answer so far is kept; the same command goes on from there."
                )
            tries.failed(outcome)
            if tries.are_used_up:
                error = f"{outcome.error} (the last of {tries.number} tries)"
                return Answer(status="failed", request_sha256=job.key, error=error, is_new=True)
            backoff = tries.longest_pause * self._random.uniform(0.5, 1)
            if await self._stopped_within(max(backoff, outcome.retry_after_seconds or 0.0)):
                return None

    async def _try(self, job: Job) -> Answer | Failure | None:
        """Ask once; None where the run stops before the request is sent."""
        payload, max_tokens = self._teacher.payload(job.request), job.request.sampling.max_tokens
        prompt_tokens = most_prompt_tokens(job.request, payload)
        await self.gate.enter()
        overloaded = False
        try:
            if self._requests_limit:
                await self._requests_limit.take(1)
            if self._tokens_limit:
                await self._tokens_limit.take(prompt_tokens + max_tokens)
            reserved = self._reader.cost(prompt_tokens, max_tokens) or 0
            if not await self._reserve(reserved):
                return None
            call = Call(uuid.uuid4().hex, job.key, self._purpose, reserved, "sent", None)
            await self._store.begin(call, teacher=self._teacher.address, sent_at=time.time())
            try:
                response = await self._teacher.send(self._session, payload, call.id)
            except (ConnectionError, TimeoutError) as error:
                overloaded = isinstance(error, TimeoutError)
                return await self._lost(call, str(error), is_free=isinstance(error, NotConnected))
            if response.status == 200:
                return await self._received(job, call, response, prompt_tokens + max_tokens)
            overloaded = response.status in OVERLOADED
            if response.status in FLAGGING and is_flagged(response.body):
                return await self._flagged(job, call, response)
            return await self._refused(job, call, response)
        finally:
            self.gate.leave(overloaded=overloaded)

    async def _received(self, job: Job, call: Call, response: Response, most_tokens: int) -> Answer | Failure:
        await self._store.keep(call, response.body, response.latency_seconds)
        try:
            answer = self._reader.parse(job.key, Stored(response.body, response.latency_seconds, call.id), is_new=True)
        except Unusable as error:
            self._store.set_aside(call)
            return await self._lost(call, f"an unusable answer: {error}", raw=response.body)
        self._breaker.succeeded()
        self._has_answered = self.knows_answers = True
        if self._tokens_limit and answer.prompt_tokens is not None and answer.completion_tokens is not None:
            used = answer.prompt_tokens + answer.completion_tokens
            self._tokens_limit.correct(used - most_tokens)
        self._settle(call, settle_answered(call, answer, self._store, self._reader))
        return answer

    async def _lost(self, call: Call, error: str, *, is_free: bool = False, raw: bytes = b"") -> Failure:
        """A call of which nobody knows whether it was billed, unless the server says so."""
        self._breaker.failed()
        paid, state = (0, "failed") if is_free else await self._outcome_of(call, raw)
        self._store.fail(call, error, picousd=paid, state=state)
        self._settle(call, paid or 0)
        return Failure(error)

    async def _outcome_of(self, call: Call, raw: bytes = b"") -> tuple[int | None, str]:
        return await outcome_of(call, self._teacher, self._session, self._reader, raw=raw)

    async def _flagged(self, job: Job, call: Call, response: Response) -> Answer:
        """The refusal of a request that a filter stopped; some servers bill it, and do not say for how many tokens."""
        await self._store.keep(call, response.body, response.latency_seconds)
        self.knows_answers = True
        self._breaker.succeeded()
        answer = self._reader.parse(job.key, Stored(response.body, response.latency_seconds, call.id), is_new=True)
        paid, state = await self._outcome_of(call)
        self._store.fail(call, f"HTTP {response.status}: {answer.error}", picousd=paid, state=state)
        self._settle(call, paid or 0)
        return answer

    async def _refused(self, job: Job, call: Call, response: Response) -> Answer | Failure:
        said, status = f"HTTP {response.status}: {self._teacher.message(response.body)}", response.status
        is_free = status not in BROKEN_DOWN and status != TOO_SLOW
        paid, state = (0, "failed") if is_free or status in OVERLOADED else await self._outcome_of(call, response.body)
        self._store.fail(call, said, picousd=paid, state=state)
        self._settle(call, paid or 0)
        is_of_one = status == FORBIDDEN and self._has_answered  # as where a prompt is flagged
        if status in CONCERNS_ALL and not is_of_one:
            raise UserError(
                f"{self._teacher.public_url} refuses model '{self._teacher.model}': {said}. Check the key, base_url and the "
                "model's name."
            )
        if status not in MAY_PASS:
            self._require_some_well_formed(said, status)
            return Answer(status="failed", request_sha256=job.key, error=said, is_new=True)
        self._breaker.failed()
        wait = response.retry_after_seconds
        if wait is not None and wait > self._pace.give_up_after_seconds:
            raise NexaError(
                f"{self._teacher.public_url} asks to wait {wait:,.0f} s: {said}. Run the same command again then."
            )
        if wait and self.gate.is_overloaded:
            self.gate.close_until(time.monotonic() + wait)
        return Failure(said, wait, is_told_to_wait=wait is not None and status in OVERLOADED)

    def _require_some_well_formed(self, said: str, status: int) -> None:
        """Raises UserError where everything that was ever asked was called wrong: it is the settings that are."""
        self._num_malformed += status in MALFORMED
        if self._num_malformed >= MOST_MALFORMED and not self.knows_answers:
            raise UserError(
                f"{self._teacher.public_url} has answered nothing and called the first {self._num_malformed} requests wrong: "
                f"{said}. Change what they share: sampling, max_tokens_name, extra_body, system_prompt."
            )

    async def _reserve(self, picousd: int) -> bool:
        """Set money aside, once those under way have taken less than was set aside for them; False where the run stops."""
        while not self.budget.reserve(picousd):
            if self._buys_nothing_more:
                return False
            if self.budget.reserved_picousd == 0:
                limit, spent = as_usd(self.budget.limit_picousd or 0), as_usd(self.budget.spent_picousd)
                raise OutOfBudget(
                    f"the budget of ${limit:g} is used up: ${spent:.6f} are spent on {self._purpose}, and the next request may "
                    f"cost ${as_usd(picousd):.6f}. Every answer so far is kept; the same command with a higher --max-cost-usd "
                    "goes on from there."
                )
            self._settled.clear()
            await self._settled.wait()
        if self._buys_nothing_more:
            self.budget.settle(picousd, 0)
            self._settled.set()
            return False
        return True

    def _settle(self, call: Call, paid_picousd: int) -> None:
        self.budget.settle(call.reserved_picousd, paid_picousd)
        self._settled.set()

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halted.wait(), seconds)
        return self._buys_nothing_more


class _Tries:
    """Of one request: how many failed, and how long to wait until the next."""

    def __init__(self, pace: Pace, clock: Clock):
        self._max_tries, self._give_up_after_seconds = pace.max_tries, pace.give_up_after_seconds
        self._clock, self.number = clock, 0
        self._num_counted = self._num_pauses = 0
        self._told_since: float | None = None

    def failed(self, failure: Failure) -> None:
        self.number += 1
        if failure.is_told_to_wait and self._told_since is None:
            self._told_since = self._clock()
        self._num_counted += not failure.is_told_to_wait
        # A wait that is stated is enough, but one of nothing: pauses grow then as they do without.
        self._num_pauses += (failure.retry_after_seconds or 0.0) < SHORTEST_BACKOFF

    @property
    def are_used_up(self) -> bool:
        waited = 0.0 if self._told_since is None else self._clock() - self._told_since
        return self._num_counted >= self._max_tries or waited > self._give_up_after_seconds

    @property
    def longest_pause(self) -> float:
        """In seconds."""
        return min(LONGEST_BACKOFF, SHORTEST_BACKOFF * 2.0 ** min(max(0, self._num_pauses - 1), 20))
