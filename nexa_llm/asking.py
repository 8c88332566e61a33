"""Answers to a stream of requests, in its order: looked up in the store, and bought where they are not there, none twice."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from nexa_core.config.ask import AskConfig, Price
from nexa_core.errors import NexaError
from nexa_llm.buying import Buyer, Job
from nexa_llm.chat import Answer, ChatRequest
from nexa_llm.logprobs import TokenIds
from nexa_llm.openai import OpenAi
from nexa_llm.reading import Reader
from nexa_llm.settling import settle_cut_off
from nexa_llm.store import Store

logger = logging.getLogger(__name__)

LOOKED_UP_AT_ONCE = 256
GIVEN_AT_ONCE = 1024
HELD_ANSWERS = 2048
"""Answers that wait for an earlier one; of further ones only the key is held, and they are read from the store again."""
HELD_WITH_LOGPROBS = 64
"""Both, of answers that have log probabilities: with twenty a token one of 256 tokens is some 400 kB."""
SELDOM = 50_000
"""Objects made until Python looks for cycles: there are few, and it looks through all that the calls under way hold."""
MOST_AHEAD = 65_536
"""Requests between the first that is not answered and the last that was sent."""
WORKERS_A_SPARE_ONE = 4
"""Some wait to try again, and others ask meanwhile; how many ask at once is the gate's to say."""


class Interrupted(NexaError):
    """The process was told to end; what was under way was waited for and is kept."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__("stopped as told; every answer so far is kept. The same command goes on from there.")


@dataclass(frozen=True)
class Reference:
    """An answer that waits in the store for those before it."""

    key: str
    is_new: bool


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
        self._max_cost_usd, self._reader = max_cost_usd, Reader(price, token_ids)
        self._jobs: deque[Job] = deque()
        self._done: dict[int, Answer | Reference] = {}
        self._buying: dict[str, asyncio.Future[Answer | None]] = {}
        self._bought_since: set[str] = set()  # requests were last looked up
        self._most_held, self._most_given = HELD_ANSWERS, GIVEN_AT_ONCE
        if token_ids is not None:
            self._most_held = self._most_given = HELD_WITH_LOGPROBS
        self._num_taken = self._next = 0
        self._workers: list[asyncio.Task[None]] = []
        self._halt: BaseException | None = None

    def answers(self, requests: Iterable[ChatRequest]) -> Generator[Answer, None, None]:
        """The answer to each request, in order.

        Who stops listening, or is told to end, waits for what is under way, because it is paid for.

        Raises:
            OutOfBudget: what is left may not suffice for the next request.
            UserError: the server refuses the key, or does not know the model.
            NexaError: nothing was answered for a long time.
        """
        with _collecting_seldom(), asyncio.Runner() as runner:
            runner.run(self._open(iter(requests)))
            try:
                runner.run(self._begin())
                while ready := runner.run(self._ready()):
                    yield from ready
            finally:
                runner.run(self._end())
        if self._halt is not None:
            raise self._halt

    async def _open(self, requests: Iterator[ChatRequest]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
                loop.add_signal_handler(number, self._interrupt, number)
        self._requests: Iterator[ChatRequest] | None = requests
        self._session = self._teacher.session(self._pace.concurrency)
        self._taking, self._news, self._room = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._buyer = Buyer(
            self._teacher,
            self._store,
            self._reader,
            self._pace,
            self._session,
            purpose=self._purpose,
            max_cost_usd=self._max_cost_usd,
        )

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._workers = [loop.create_task(settle_cut_off(self._store, self._teacher, self._session, self._reader))]
        with contextlib.suppress(asyncio.CancelledError):  # told to end twice: the next run finds out
            await self._workers[0]
        if self._reader.prices is not None:
            names = (self._teacher.address, self._teacher.name)
            self._store.price(self._purpose, names, *self._reader.prices)  # what was bought before its price was known
        if self._max_cost_usd is not None:
            self._buyer.budget.spent_picousd = self._store.total(self._purpose).picousd
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
        while self._next in self._done and len(found) < self._most_given:
            found.append(self._done.pop(self._next))
            self._next += 1
        self._room.set()
        stored = self._store.get([each.key for each in found if isinstance(each, Reference)])
        return [
            self._reader.read(each.key, stored[each.key], is_new=each.is_new) if isinstance(each, Reference) else each
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
                if self._num_taken - self._next >= (MOST_AHEAD if is_blocked else self._most_held):
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
        self._buyer.knows_answers = self._buyer.knows_answers or bool(stored)
        self._bought_since.clear()  # no request that was looked up before is still to be taken
        for request, key in zip(requests, keys, strict=True):
            index = self._num_taken
            self._num_taken += 1
            if key not in stored or key in self._buying:  # what came of that one may yet be found to be no answer
                self._jobs.append(Job(index, request, key))
            elif self._has_room:
                self._finish(index, self._reader.read(key, stored[key]))
            else:
                self._finish(index, Reference(key, is_new=False))

    @property
    def _has_room(self) -> bool:
        """Whether one more answer may be held while it waits for an earlier one."""
        return len(self._done) < self._most_held

    def _finish(self, index: int, found: Answer | Reference) -> None:
        if isinstance(found, Answer) and found.status != "failed" and not self._has_room:
            found = Reference(found.request_sha256, found.is_new)
        self._done[index] = found
        if index == self._next:
            self._news.set()

    async def _answer(self, job: Job) -> Answer | None:
        """The answer; None where the run stops before there is one."""
        if (twin := self._buying.get(job.key)) is not None:
            found = await asyncio.shield(twin)
            return None if found is None else replace(found, is_new=False)
        if job.key in self._bought_since and (stored := self._store.get([job.key])):  # by an equal request
            return self._reader.read(job.key, stored[job.key])
        self._buying[job.key] = bought = asyncio.get_running_loop().create_future()
        try:
            answer = await self._buyer.buy(job)
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

    def _stop(self, why: BaseException | None) -> None:
        """Begin nothing more."""
        self._halt = self._halt or why
        self._requests = None
        self._jobs.clear()
        self._buyer.stop(at_once=self._halt is not None)
        for event in (self._room, self._news):
            event.set()

    def _interrupt(self, number: int) -> None:
        if isinstance(self._halt, Interrupted):
            for worker in self._workers:
                worker.cancel()
            return
        logger.warning(
            "stopping: waiting for %d answers that are paid for; once more stops at once",
            self._buyer.gate.num_under_way,
        )
        self._stop(Interrupted(number))


@contextlib.contextmanager
def _collecting_seldom() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
