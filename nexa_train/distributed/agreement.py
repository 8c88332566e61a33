"""How ranks come to one verdict through the store alone: before there is a process group, and when it fails.

Each rank reports. Rank 0 judges as soon as all have; a rank whose time is up first judges what is there. The first
verdict written is everyone's, so no two ranks ever act on different ones, and nobody waits for who does not come.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from nexa_core.errors import NodeError
from nexa_train.distributed.store import own_connection, within
from nexa_train.distributed.world import World

PINGS = 3
PING_SECONDS = 2.0
"""How long a rank that has reported may take to answer a ping."""
GRACE_SECONDS = 2.0
"""What the other ranks wait beyond the timeout, so that rank 0, which waits just as long, is the one to judge."""


@dataclass(frozen=True)
class ClockReading:
    """A rank's wall clock against rank 0's."""

    offset_seconds: float
    """Positive when it is ahead."""
    error_seconds: float
    """Half the round trip of the ping: the true offset is no further away than this."""


@dataclass(frozen=True)
class Gathered:
    reports: Mapping[int, Any]
    """By rank; one that did not report in time is not in it."""
    clocks: Mapping[int, ClockReading | None]
    """Of the other ranks that reported, when rank 0 gathers; None where one has fallen silent since."""


Judge = Callable[[Gathered], Any]


def agree(
    store: Store | None,
    world: World,
    *,
    topic: str,
    report: Any,
    judge: Judge,
    timeout_seconds: float,
    clock: Callable[[], float] = time.time,
) -> Any:
    """The verdict that every rank gets; reports and verdicts are what JSON can say. Alone, there is no store to ask.

    Args:
        topic: names this agreement; each topic is agreed on once in the life of a store.

    Raises:
        NodeError: the store is gone or does not answer.
    """
    if store is None:
        assert world.is_alone
        return judge(Gathered({world.rank: report}, {}))
    patience = timeout_seconds + GRACE_SECONDS + 1
    talk = _Talk(store, world, topic, report, judge, timeout_seconds, clock)
    try:
        return within(patience, talk.run)
    except TimeoutError:
        what = f"has not answered for {patience:g} s"
    except dist.DistError as error:
        what = f"is gone ({str(error).partition(chr(10))[0]})"
    raise NodeError(
        f"The store that {world.name} shares with the others {what}: rank 0's process or machine, which holds it or "
        "whose launcher does, has ended, is stopped or cannot be reached. Look at rank 0's log, then start again."
    )


@dataclass
class _Talk:
    store: Store
    world: World
    topic: str
    report: Any
    judge: Judge
    timeout_seconds: float
    clock: Callable[[], float]

    def run(self) -> Any:
        self.keys = own_connection(self.store, f"agree/{self.topic}")
        self.deadline = time.monotonic() + self.timeout_seconds
        self.keys.set(f"report/{self.world.rank}", json.dumps(self.report))
        self.keys.set(f"arrival/{self.keys.add('arrivals', 1)}", str(self.world.rank))
        if self.world.is_main:
            gathered = self._gather_as_they_come()
        else:
            if self._answer_pings_and_wait():
                return self._read_verdict()
            gathered = Gathered(self._reports_there(), {})
        mine = json.dumps(self.judge(gathered))
        chosen = self.keys.compare_set("verdict", "", mine)
        if self.world.is_main:
            self.keys.add("read", 1)
            self._wait_for_readers(len(gathered.reports))
        return json.loads(chosen)

    def _gather_as_they_come(self) -> Gathered:
        ranks = []
        clocks = {}
        for arrival in range(1, self.world.size + 1):
            if not self._comes(f"arrival/{arrival}", self.deadline - time.monotonic()):
                break
            rank = int(self.keys.get(f"arrival/{arrival}"))
            ranks.append(rank)
            if rank != self.world.rank:
                clocks[rank] = self._read_clock(rank)
        return Gathered({rank: self._read_report(rank) for rank in sorted(ranks)}, clocks)

    def _read_clock(self, rank: int) -> ClockReading | None:
        """The reading with the shortest round trip of a few; None when the rank has fallen silent."""
        readings = []
        for index in range(PINGS):
            sent = self.clock()
            began = time.monotonic()
            self.keys.set(f"ping/{rank}/{index}", "")
            if not self._comes(f"pong/{rank}/{index}", PING_SECONDS):
                return None
            round_trip = time.monotonic() - began
            theirs = float(self.keys.get(f"pong/{rank}/{index}"))
            readings.append(ClockReading(theirs - (sent + round_trip / 2), round_trip / 2))
        return min(readings, key=lambda reading: reading.error_seconds)

    def _answer_pings_and_wait(self) -> bool:
        """Whether there is a verdict before this rank's time is up."""
        for index in range(PINGS):
            if not self._comes(f"ping/{self.world.rank}/{index}", self.deadline + GRACE_SECONDS - time.monotonic()):
                return self.keys.check(["verdict"])
            self.keys.set(f"pong/{self.world.rank}/{index}", repr(self.clock()))
        return self._comes("verdict", self.deadline + GRACE_SECONDS - time.monotonic())

    def _read_verdict(self) -> Any:
        verdict = json.loads(self.keys.get("verdict"))
        self.keys.add("read", 1)
        return verdict

    def _reports_there(self) -> dict[int, Any]:
        there = [rank for rank in range(self.world.size) if self.keys.check([f"report/{rank}"])]
        return {rank: self._read_report(rank) for rank in there}

    def _read_report(self, rank: int) -> Any:
        return json.loads(self.keys.get(f"report/{rank}"))

    def _wait_for_readers(self, num_readers: int) -> None:
        """Rank 0 may hold the store: it must not end before the others have read what ends them."""
        until = time.monotonic() + GRACE_SECONDS
        while self.keys.add("read", 0) < num_readers and time.monotonic() < until:
            time.sleep(0.01)

    def _comes(self, key: str, seconds: float) -> bool:
        try:
            self.keys.wait([key], timedelta(seconds=max(seconds, 0.001)))
        except dist.DistStoreError:  # its timeout
            return False
        return True
