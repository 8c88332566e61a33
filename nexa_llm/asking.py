"""Buying answers over HTTP: within the budget, at the server's pace, each stored before it is read, none bought twice."""

import asyncio
import contextlib
import logging
import random
import signal
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from nexa_core.config.ask import AskConfig, Price
from nexa_core.errors import GateError, NexaError, UserError
from nexa_llm.budget import Budget, most_prompt_tokens
from nexa_llm.chat import Answer, ChatRequest
from nexa_llm.logprobs import TokenIds
from nexa_llm.openai import NotConnected, OpenAi, Response
from nexa_llm.pace import Breaker, Gate, RateLimit
from nexa_llm.parse import Unusable, parse_answer
from nexa_llm.prices import as_usd
from nexa_llm.store import Call, Store, Stored

logger = logging.getLogger(__name__)

SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.25, 30.0
MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
OVERLOADED = {429, 503, 529}
FORBIDDEN = 403
CONCERNS_ALL = {401, 402, 403, 404, 405}
"""Statuses that the next request would get as well: a wrong key, an empty account, an unknown model."""
LOOKED_UP_AT_ONCE = 256
GIVEN_AT_ONCE = 1024
HELD_ANSWERS = 2048
"""Answers that wait for an earlier one; of further ones only the key is held, and they are read from the store again."""
MOST_AHEAD = 65_536
"""Requests between the first that is not answered and the last that was sent."""
BILLS_ASKED_AT_ONCE = 16
WORKERS_A_SPARE_ONE = 4
"""Some wait to try again, and others ask meanwhile; how many ask at once is the gate's to say."""


class OutOfBudget(GateError):
    """The next request might cost more than is left; everything that was paid for is kept."""


class Interrupted(NexaError):
    """The process was told to end; what was under way was waited for and is kept."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__("stopped as told; every answer so far is kept. The same command goes on from there.")


@dataclass(frozen=True)
class Job:
    """A request whose answer is to be bought."""

    index: int
    request: ChatRequest
    key: str


@dataclass(frozen=True)
class Reference:
    """An answer that waits in the store for those before it."""

    key: str
    is_new: bool


@dataclass(frozen=True)
class Failure:
    """A try that brought nothing, and may succeed later."""

    error: str
    retry_after_seconds: float | None = None


class Asking:
    """Answers to a stream of requests, in its order. Memory does not grow with their number."""

    def __init__(
        self,
        teacher: OpenAi,
        store: Store,
        config: AskConfig,
        *,
        purpose: str,
        price: Price | None = None,
        max_cost_usd: float | None = None,
        token_ids: TokenIds | None = None,
    ):
        self._teacher, self._store, self._pace, self._purpose = teacher, store, config.pace, purpose
        self._prices = None if price is None else price.picousd_per_token()
        self._token_ids = token_ids
        self.budget = Budget(max_cost_usd)
        self._random = random.Random(0)  # of pauses: no result depends on it
        clock, pace = time.monotonic, config.pace
        self.gate = Gate(pace.concurrency, clock)
        self._breaker = Breaker(self.gate, pace.give_up_after_seconds, clock)
        self._requests_limit = RateLimit(pace.requests_per_minute, clock) if pace.requests_per_minute else None
        self._tokens_limit = RateLimit(pace.tokens_per_minute, clock) if pace.tokens_per_minute else None
        self._jobs: deque[Job] = deque()
        self._done: dict[int, Answer | Reference] = {}
        self._buying: dict[str, asyncio.Future[Answer | None]] = {}
        self._bought_since: set[str] = set()  # requests were last looked up
        self._num_taken = self._next = 0
        self._halt: BaseException | None = None
        self._has_answered = False

    def answers(self, requests: Iterable[ChatRequest]) -> Generator[Answer, None, None]:
        """The answer to each request, in order.

        Who stops listening, or is told to end, waits for what is under way, because it is paid for.

        Raises:
            OutOfBudget: what is left may not suffice for the next request.
            UserError: the server refuses the key, or does not know the model.
            NexaError: nothing was answered for a long time.
        """
        with asyncio.Runner() as runner:
            runner.run(self._begin(iter(requests)))
            try:
                while ready := runner.run(self._ready()):
                    yield from ready
            finally:
                runner.run(self._end())
        if self._halt is not None:
            raise self._halt

    async def _begin(self, requests: Iterator[ChatRequest]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
                loop.add_signal_handler(number, self._interrupt, number)
        self._requests: Iterator[ChatRequest] | None = requests
        self._session = self._teacher.session(self._pace.concurrency)
        self._taking, self._news, self._room = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._settled, self._halted = asyncio.Event(), asyncio.Event()
        await self._settle_cut_off()
        if self._prices is not None:
            self._store.price(self._purpose, *self._prices)  # what was bought before its price was known
        self.budget.spent_picousd = self._store.total(self._purpose).picousd
        most = self._pace.concurrency
        num_workers = most + most // WORKERS_A_SPARE_ONE
        self._workers = [loop.create_task(self._work()) for _ in range(num_workers)]
        for worker in self._workers:
            worker.add_done_callback(lambda _: self._news.set())

    async def _end(self) -> None:
        self._stop(self._halt)
        await asyncio.gather(*self._workers, return_exceptions=True)
        try:
            await self._store.flush()
        except NexaError as error:
            self._halt = self._halt or error
        await self._session.close()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                asyncio.get_running_loop().remove_signal_handler(number)

    async def _ready(self) -> list[Answer]:
        """The next answers in order, as many as there are; none at the end."""
        while self._next not in self._done:
            if all(worker.done() for worker in self._workers):
                for worker in self._workers:
                    worker.result()  # raises what nobody foresaw
                return []
            self._news.clear()
            await self._news.wait()
        found: list[Answer | Reference] = []
        while self._next in self._done and len(found) < GIVEN_AT_ONCE:
            found.append(self._done.pop(self._next))
            self._next += 1
        self._room.set()
        stored = self._store.get([each.key for each in found if isinstance(each, Reference)])
        return [
            replace(self._read(each.key, stored[each.key]), is_new=each.is_new) if isinstance(each, Reference) else each
            for each in found
        ]

    async def _work(self) -> None:
        try:
            while (job := await self._take()) is not None:
                if (answer := await self._answer(job)) is None:
                    return
                self._finish(job.index, answer)
        except NexaError as error:
            self._stop(error)
        except Exception as error:  # nobody foresaw it: the others are not to go on buying
            self._stop(error)
            raise

    async def _take(self) -> Job | None:
        """The next request whose answer has to be bought; those before it that are stored are finished."""
        async with self._taking:
            while not self._jobs and self._requests is not None and self._halt is None:
                is_blocked = self._next not in self._done  # by an answer that is under way
                if self._num_taken - self._next >= (MOST_AHEAD if is_blocked else HELD_ANSWERS):
                    self._room.clear()
                    await self._room.wait()
                    continue
                self._look_up(list(islice(self._requests, LOOKED_UP_AT_ONCE)))
                await asyncio.sleep(0)
            return self._jobs.popleft() if self._jobs and self._halt is None else None

    def _look_up(self, requests: list[ChatRequest]) -> None:
        if not requests:
            self._requests = None
            return
        keys = [self._teacher.key(request) for request in requests]
        stored = self._store.get(keys)
        self._bought_since.clear()  # no request that was looked up before is still to be taken
        for request, key in zip(requests, keys, strict=True):
            index = self._num_taken
            self._num_taken += 1
            if key not in stored:
                self._jobs.append(Job(index, request, key))
            else:
                self._finish(index, self._read(key, stored[key]))

    def _finish(self, index: int, answer: Answer) -> None:
        holds_text = len(self._done) < HELD_ANSWERS or answer.status == "failed"
        self._done[index] = answer if holds_text else Reference(answer.request_sha256, answer.is_new)
        if index == self._next:
            self._news.set()

    async def _answer(self, job: Job) -> Answer | None:
        """The answer; None where the run stops before there is one."""
        if (twin := self._buying.get(job.key)) is not None:
            found = await asyncio.shield(twin)
            return None if found is None else replace(found, is_new=False)
        if job.key in self._bought_since and (stored := self._store.get([job.key])):  # by an equal request
            return self._read(job.key, stored[job.key])
        self._buying[job.key] = bought = asyncio.get_running_loop().create_future()
        try:
            answer = await self._buy(job)
        except BaseException as error:
            bought.set_exception(error if isinstance(error, NexaError) else Interrupted(signal.SIGINT))
            bought.exception()  # an equal request may wait for it, or none
            raise
        else:
            self._bought_since.add(job.key)
            bought.set_result(answer)
            return answer
        finally:
            del self._buying[job.key]

    async def _buy(self, job: Job) -> Answer | None:
        await self._teacher.ready()
        for number in range(1, self._pace.max_tries + 1):
            outcome = await self._try(job)
            if not isinstance(outcome, Failure):
                return outcome
            if self._breaker.is_hopeless:
                raise NexaError(
                    f"{self._teacher.public_url} has answered nothing for {self._pace.give_up_after_seconds:g} s: "
                    f"{outcome.error}. Every answer so far is kept; the same command goes on from there."
                )
            if number == self._pace.max_tries:
                error = f"{outcome.error} (the last of {number} tries)"
                return Answer(status="failed", request_sha256=job.key, error=error, is_new=True)
            backoff = min(LONGEST_BACKOFF, SHORTEST_BACKOFF * 2 ** (number - 1)) * self._random.uniform(0.5, 1)
            if await self._stopped_within(
                backoff if outcome.retry_after_seconds is None else outcome.retry_after_seconds
            ):
                return None
        raise AssertionError("unreachable")

    async def _try(self, job: Job) -> Answer | Failure | None:
        """Ask once; None where the run stops before the request is sent."""
        prompt_tokens, max_tokens = most_prompt_tokens(job.request), job.request.sampling.max_tokens
        await self.gate.enter()
        overloaded = False
        try:
            if self._requests_limit:
                await self._requests_limit.take(1)
            if self._tokens_limit:
                await self._tokens_limit.take(prompt_tokens + max_tokens)
            reserved = self._cost(prompt_tokens, max_tokens) or 0
            if not await self._reserve(reserved):
                return None
            call = Call(uuid.uuid4().hex, job.key, self._purpose, reserved, "sent", None)
            await self._store.begin(call, teacher=self._teacher.address, sent_at=time.time())
            try:
                response = await self._teacher.send(self._session, job.request, call.id)
            except (ConnectionError, TimeoutError) as error:
                overloaded = isinstance(error, TimeoutError)
                return await self._lost(call, str(error), is_free=isinstance(error, NotConnected))
            if response.status == 200:
                return await self._received(job, call, response)
            overloaded = response.status in OVERLOADED
            return self._refused(job, call, response)
        finally:
            self.gate.leave(overloaded=overloaded)

    async def _received(self, job: Job, call: Call, response: Response) -> Answer | Failure:
        await self._store.keep(call, response.body, response.latency_seconds)
        try:
            answer = self._parse(job.key, Stored(response.body, response.latency_seconds, call.id))
        except Unusable as error:
            return await self._lost(call, f"an unusable answer: {error}", unusable=True)
        self._breaker.succeeded()
        self._has_answered = True
        if self._tokens_limit and answer.prompt_tokens is not None and answer.completion_tokens is not None:
            used = answer.prompt_tokens + answer.completion_tokens
            self._tokens_limit.correct(used - most_prompt_tokens(job.request) - job.request.sampling.max_tokens)
        paid = call.reserved_picousd if answer.cost_picousd is None else answer.cost_picousd
        self._store.settle(call, paid if self._prices else None, answer.prompt_tokens, answer.completion_tokens)
        self._settle(call, paid)
        return replace(answer, is_new=True)

    async def _lost(self, call: Call, error: str, *, is_free: bool = False, unusable: bool = False) -> Failure:
        """A call of which nobody knows whether it was billed, unless the server says so."""
        self._breaker.failed()
        paid, state = (0, "failed") if is_free else await self._outcome_of(call)
        self._store.fail(call, error, picousd=paid, state=state, unusable=unusable)
        self._settle(call, paid or 0)
        return Failure(error)

    async def _outcome_of(self, call: Call) -> tuple[int | None, str]:
        """What a lost call cost, and its state in the ledger."""
        if self._prices is None:
            return None, "unknown"
        billed = await self._teacher.billed(self._session, call.id) if call.reserved_picousd else 0
        return (call.reserved_picousd, "unknown") if billed is None else (billed, "failed")

    def _refused(self, job: Job, call: Call, response: Response) -> Answer | Failure:
        said = f"HTTP {response.status}: {self._teacher.message(response.body)}"
        self._store.fail(call, said)
        self._settle(call, 0)
        is_of_one = response.status == FORBIDDEN and self._has_answered  # as where a prompt is flagged
        if response.status in CONCERNS_ALL and not is_of_one:
            raise UserError(
                f"{self._teacher.public_url} refuses model '{self._teacher.model}': {said}. Check the key, base_url and the "
                "model's name."
            )
        if response.status not in MAY_PASS:
            return Answer(status="failed", request_sha256=job.key, error=said, is_new=True)
        self._breaker.failed()
        wait = response.retry_after_seconds
        if wait is not None and wait > self._pace.give_up_after_seconds:
            raise NexaError(
                f"{self._teacher.public_url} asks to wait {wait:,.0f} s: {said}. Run the same command again then."
            )
        if wait and self.gate.is_overloaded:
            self.gate.close_until(time.monotonic() + wait)
        return Failure(said, wait)

    async def _reserve(self, picousd: int) -> bool:
        """Set money aside, once those under way have taken less than was set aside for them; False where the run stops."""
        while not self.budget.reserve(picousd):
            if self._halt is not None:
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
        if self._halt is not None:
            self._settle(Call("", "", "", picousd, "", None), 0)
            return False
        return True

    def _settle(self, call: Call, paid_picousd: int) -> None:
        self.budget.settle(call.reserved_picousd, paid_picousd)
        self._settled.set()

    async def _settle_cut_off(self) -> None:
        """Find out what became of the calls that a killed process had under way."""
        cut_off = self._store.cut_off((self._teacher.address, self._teacher.name))
        turn = asyncio.Semaphore(BILLS_ASKED_AT_ONCE)

        async def settle(call: Call) -> None:
            async with turn:
                paid, state = await self._outcome_of(call)
            unusable = self._has_left_unusable(call)
            self._store.fail(call, "cut off: the process was killed", picousd=paid, state=state, unusable=unusable)

        await asyncio.gather(*map(settle, cut_off))
        if cut_off:
            await self._store.flush()
            logger.info(
                "%d calls were under way when the process was killed before; the ledger lists them", len(cut_off)
            )

    def _has_left_unusable(self, call: Call) -> bool:
        """Whether a call's response was kept and the process killed before it was found to be no answer."""
        kept = self._store.get([call.key]).get(call.key)
        if kept is None or kept.call != call.id:
            return False
        try:
            self._parse(call.key, kept)
        except Unusable:
            return True
        return False

    def _read(self, key: str, stored: Stored) -> Answer:
        try:
            return self._parse(key, stored)
        except (
            Unusable
        ) as error:  # stored answers were usable; a stricter parser, or logprobs read by another tokenizer
            return Answer(status="failed", request_sha256=key, error=f"the stored answer: {error}")

    def _parse(self, key: str, stored: Stored) -> Answer:
        answer = parse_answer(stored.raw, key, token_ids=self._token_ids)
        is_counted = answer.prompt_tokens is not None and answer.completion_tokens is not None
        cost = self._cost(answer.prompt_tokens or 0, answer.completion_tokens or 0) if is_counted else None
        return replace(answer, cost_picousd=cost, latency_seconds=stored.latency_seconds)

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> int | None:
        if self._prices is None:
            return None
        return prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halted.wait(), seconds)
        return self._halt is not None

    def _stop(self, why: BaseException | None) -> None:
        """Begin nothing more."""
        self._halt = self._halt or why
        self._requests = None
        self._jobs.clear()
        for event in (self._halted, self._settled, self._room, self._news):
            event.set()
        for each in (self.gate, self._requests_limit, self._tokens_limit):
            if each is not None:
                each.stop()

    def _interrupt(self, number: int) -> None:
        if isinstance(self._halt, Interrupted):
            for worker in self._workers:
                worker.cancel()
            return
        logger.warning(
            "stopping: waiting for %d answers that are paid for; once more stops at once", self.gate.num_under_way
        )
        self._stop(Interrupted(number))
