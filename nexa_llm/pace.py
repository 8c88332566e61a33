"""How fast requests may go out: limits a minute, as many at once as the server bears, a pause when it says so."""

import asyncio
import collections
import contextlib
from collections.abc import Callable

Clock = Callable[[], float]

SHARE_THAT_IS_OVERLOAD, SHARE_THAT_IS_USUAL = 0.10, 0.05
"""Of a round's requests, those that the server was too busy for; few are what a shared server does now and then."""
SHORTEST_ROUND = 20
DOWN, UP_SHARE = 0.5, 1 / 16


class RateLimit:
    """Lets `per_minute` units through, evenly; what the last second left unused may go at once."""

    def __init__(self, per_minute: float, clock: Clock):
        self._rate, self._clock = per_minute / 60, clock
        self._free_at = clock()
        self._stopped = asyncio.Event()

    async def take(self, units: float) -> None:
        """Wait until the units may go, or until nothing goes any more."""
        begins = max(self._free_at, self._clock() - 1.0)
        self._free_at = begins + units / self._rate
        if (wait := begins - self._clock()) > 0:
            await _sleep(wait, self._stopped)

    def stop(self) -> None:
        """Have nobody wait any longer."""
        self._stopped.set()

    def correct(self, units: float) -> None:
        """Take more, or give some back with a negative number, once it is known how many there were."""
        self._free_at += units / self._rate


class Gate:
    """Lets as many requests out at once as the server bears: additive increase, multiplicative decrease.

    A round is as many outcomes as may be under way at once. When more than a tenth of them met an overloaded server, half as
    many may be under way; after a round with at most half that share, a sixteenth of the most more. Source: Chiu and Jain
    1989, for the rule.
    """

    def __init__(self, most: int, clock: Clock):
        self.most = self.limit = most
        self.num_under_way = self.most_under_way = 0
        self._clock, self._waiting = clock, collections.deque[asyncio.Future[None]]()
        self._closed_until = 0.0
        self._stopped = asyncio.Event()
        self._outcomes = self._overloads = 0

    async def enter(self) -> None:
        """Wait for a place; who comes first has the first one that is free."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_in()
        try:
            await turn
            while (wait := self._closed_until - self._clock()) > 0 and not self._stopped.is_set():
                await _sleep(wait, self._stopped)
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # its place has been given already
                self.num_under_way -= 1
                self._let_in()
            raise

    def leave(self, *, overloaded: bool) -> None:
        self.num_under_way -= 1
        self._outcomes += 1
        self._overloads += overloaded
        if self._outcomes >= max(self.limit, SHORTEST_ROUND):
            if self._overloads > SHARE_THAT_IS_OVERLOAD * self._outcomes:
                self.limit = max(1, int(self.limit * DOWN))
            elif self._overloads <= SHARE_THAT_IS_USUAL * self._outcomes:
                self.limit = min(self.most, self.limit + max(1, int(self.most * UP_SHARE)))
            self._outcomes = self._overloads = 0
        self._let_in()

    def stop(self) -> None:
        """Have nobody wait any longer: who is let in now sees that nothing is to be sent."""
        self._stopped.set()
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and (self.num_under_way < self.limit or self._stopped.is_set()):
            self.num_under_way += 1  # here, so that nobody comes in between
            self.most_under_way = max(self.most_under_way, self.num_under_way)
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def close_until(self, at: float) -> None:
        """Let nobody out before."""
        self._closed_until = max(self._closed_until, at)

    @property
    def is_overloaded(self) -> bool:
        """Whether more of this round's requests than usual met an overloaded server."""
        return self._overloads > max(2.0, SHARE_THAT_IS_OVERLOAD * self.limit)


async def _sleep(seconds: float, unless: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(unless.wait(), seconds)


class Breaker:
    """Opens when a long row of requests failed: one at a time tries whether the server is back, at growing distances.

    Raises nothing itself; `is_hopeless` says when nothing has been answered for so long that the run should end.
    """

    SHORTEST_ROW = 20
    FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

    def __init__(self, gate: Gate, give_up_after_seconds: float, clock: Clock):
        self._gate, self._give_up, self._clock = gate, give_up_after_seconds, clock
        self._row, self._pause, self._well_at = 0, self.FIRST_PAUSE, clock()

    def succeeded(self) -> None:
        if self._row >= self.SHORTEST_ROW:
            self._gate.limit = max(1, self._gate.most // 4)
        self._row, self._pause, self._well_at = 0, self.FIRST_PAUSE, self._clock()

    def failed(self) -> None:
        if self._row == 0:  # from here on nothing is answered; before, nothing may have been asked
            self._well_at = self._clock()
        self._row += 1
        if self._row >= max(self.SHORTEST_ROW, self._gate.limit):
            self._gate.limit = 1
            self._gate.close_until(min(self._clock() + self._pause, self._well_at + self._give_up))
            self._pause = min(self._pause * 2, self.LONGEST_PAUSE)

    @property
    def is_hopeless(self) -> bool:
        return self._row > 0 and self._clock() - self._well_at > self._give_up
