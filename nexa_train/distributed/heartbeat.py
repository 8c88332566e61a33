"""A run that stands still ends, and says who held it up: every rank's heartbeat, watched by the others.

Two threads a rank. One talks to the store: it sends this rank's beat about once a second, reads what rank 0 says, and
on rank 0 reads everyone's and judges, so that the store carries as many messages as there are ranks and not their
square. The other only watches the first, because a call on a store whose host is stopped never returns; and it gives a
sign of life to a process beside the rank, which ends a rank that is stopped itself.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from nexa_core.errors import NodeError
from nexa_train.distributed.guardian import LAST_SECONDS, STACK_SIGNAL, start_guardian
from nexa_train.distributed.stall import Beat, Stall, Watch
from nexa_train.distributed.store import own_connection, within
from nexa_train.distributed.world import World

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS = 1.0
LINGER_SECONDS = 2.0
"""What rank 0 waits for the others to read its verdict, and they for the end of a run whose store has gone."""
LOOK_SECONDS = 1.5 * SECONDS_BETWEEN_BEATS
"""Between two looks at a rank: it sends at least one beat meanwhile, if it lives."""
PHASE_LIMIT_SECONDS = 3600.0
MOST_STACKS = 4
MOST_FRAMES = 12
RESUME = "The run continues from its newest checkpoint: start the same command again with --resume."


def end_process(message: str) -> None:
    """Log a message and end with NodeError's exit code, whatever the main thread is waiting for."""
    speaking = threading.Thread(target=_say, args=(message,), daemon=True)
    speaking.start()
    speaking.join(1.0)  # the main thread may hold the lock of a log
    os._exit(NodeError.exit_code)


class Heartbeat:
    """A context manager around a training loop that calls `beat`; without a store it watches nothing.

    All ranks have to beat alike: the one with the fewest beats in the lowest step is held to be the slowest. What only
    one rank does, or what takes long, belongs into a `phase`.
    """

    def __init__(self, store: Store | None, world: World, *, timeout_seconds: float):
        self._store, self._world, self._timeout_seconds = store, world, timeout_seconds
        self._pulse = _Pulse()
        self._sender: _Sender | None = None

    def __enter__(self) -> "Heartbeat":
        if self._store is not None:
            self._sender = _Sender(
                self._pulse,
                self._store,
                self._world,
                timeout_seconds=self._timeout_seconds,
                main_thread=threading.get_ident(),
            )
            self._sender.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; a collective that failed because another rank is lost becomes a NodeError that names it."""
        lost = _name_lost(self._store, self._world) if self._store is not None and _is_of_a_group(error) else None
        self._pulse.left = "" if error is None else f"{type(error).__name__}: {error}".partition("\n")[0]
        self._pulse.leaving.set()
        if self._sender is not None:
            # Rank 0 may hold the store: at a good end it stays until the others need it no more, watching them still.
            self._sender.finished.wait(None if self._world.is_main and error is None else LINGER_SECONDS)
        if lost is not None:
            said = self._pulse.as_beat(0).says
            raise NodeError(f"{self._world.name} cannot go on {said}: {lost}. {RESUME}") from error

    def beat(self, step: int, doing: str = "computing") -> None:
        """Note that this rank has got to `doing` in `step`; costs a fraction of a microsecond and talks to nobody."""
        last_step, part, _ = self._pulse.at
        self._pulse.at = (step, part + 1 if step == last_step else 0, doing)

    @contextlib.contextmanager
    def phase(self, name: str, *, limit_seconds: float = PHASE_LIMIT_SECONDS) -> Iterator[None]:
        """A healthy phase of up to `limit_seconds` without a beat; only a stopped or lost process ends the run in it."""
        outer = self._pulse.phase
        self._pulse.phase = (name, time.monotonic() + limit_seconds)
        try:
            yield
        finally:
            self._pulse.phase = outer

    def renew(self, limit_seconds: float = PHASE_LIMIT_SECONDS) -> None:
        """A sign of progress within a phase, which may go on for so long from now."""
        if self._pulse.phase is not None:
            self._pulse.phase = (self._pulse.phase[0], time.monotonic() + limit_seconds)


@dataclass
class _Pulse:
    """What the main thread notes and the sender reads; each field is replaced as a whole, so no lock is needed."""

    at: tuple[int, int, str] = (-1, 0, "starting")
    """Step, how many beats in it, and what was begun."""
    phase: tuple[str, float] | None = None
    """Name, and the monotonic time until which it is excused."""
    left: str | None = None
    leaving: threading.Event = field(default_factory=threading.Event)

    def as_beat(self, count: int) -> Beat:
        step, part, doing = self.at
        phase = self.phase
        if phase is None:
            return Beat(count, step, part, doing, left=self.left)
        name, until = phase
        return Beat(count, step, part, name, excused=time.monotonic() < until, left=self.left)


class _Sender:
    """Sends, reads, judges; and ends the process when the verdict is that the run stands still."""

    def __init__(self, pulse: _Pulse, store: Store, world: World, *, timeout_seconds: float, main_thread: int):
        self.pulse, self.store, self.world, self.main_thread = pulse, store, world, main_thread
        self.timeout_seconds = timeout_seconds
        self.interval = min(SECONDS_BETWEEN_BEATS, timeout_seconds / 4)
        self.finished = threading.Event()
        self.is_store_gone = False
        self.count = 0
        self.mine = Beat()
        self.moved_at = self.answered_at = time.monotonic()
        self.hosts: dict[int, str] = {}
        watched = tuple(range(world.size)) if world.is_main else (0,)
        self.watch = Watch(watched, timeout_seconds=timeout_seconds, now=self.answered_at)

    def start(self) -> None:
        # Printed by whichever thread gets the signal, without the interpreter. Not by a timer of this process: one that
        # has run out while all were suspended would walk the frames of threads that have just begun to run again.
        faulthandler.register(STACK_SIGNAL, file=2)
        # Beyond the timeout, so that the others have named a stopped process before it ends.
        self.guardian = start_guardian(self.world.name, seconds=self.timeout_seconds + LAST_SECONDS)
        for work in (self._send_and_read, self._guard):
            threading.Thread(target=work, name="heartbeat", daemon=True).start()

    def _send_and_read(self) -> None:
        try:
            self._converse()
        except dist.DistError as error:
            # The main thread may be ending by itself, and rank 0 have been quicker.
            self.is_store_gone = True
            if not self.pulse.leaving.wait(LINGER_SECONDS + LOOK_SECONDS):
                self._lose_store(f"is gone ({str(error).partition(chr(10))[0]})")
        finally:
            self.finished.set()

    def _converse(self) -> None:
        self.keys = own_connection(self.store, "heartbeat")
        self.keys.set(f"host/{self.world.rank}", socket.gethostname())
        while True:
            is_leaving = self.pulse.leaving.is_set()
            self._send()
            self._read()
            self.answered_at = time.monotonic()
            if is_leaving and (not self.world.is_main or self.mine.left or self._others_have_left()):
                return
            if self.keys.check(["verdict"]):
                self._obey(self.keys.get("verdict").decode(), gone=())
            elif stall := self._find_stall(time.monotonic()):
                verdict = self.keys.compare_set("verdict", "", self._describe(stall)).decode()
                self._obey(verdict, gone=stall.ranks if stall.are_silent else ())
            if is_leaving:
                time.sleep(self.interval / 10)
            else:
                self._sleep()

    def _send(self) -> None:
        self.count += 1
        before, self.mine = self.mine, self.pulse.as_beat(self.count)
        now = time.monotonic()
        if self.mine.place != before.place or self.mine.excused:
            self.moved_at = now
        elif now - self.moved_at > self.timeout_seconds / 2:
            # Before anyone asks: who asks may have no time to wait for an answer.
            self.keys.set(f"stack/{self.world.rank}", self._stack())
        self.keys.set(f"beat/{self.world.rank}", json.dumps(asdict(self.mine)))

    def _read(self) -> None:
        unknown = [rank for rank in self.watch.beats if rank not in self.hosts]
        for rank in unknown:
            if self.keys.check([f"host/{rank}", f"beat/{rank}"]):
                self.hosts[rank] = self.keys.get(f"host/{rank}").decode()
        known = list(self.hosts)
        values = self.keys.multi_get([f"beat/{rank}" for rank in known]) if known else []
        beats = {rank: Beat(**json.loads(value)) for rank, value in zip(known, values, strict=True)}
        self.watch.see(beats, time.monotonic())

    def _others_have_left(self) -> bool:
        return all(beat.left is not None for rank, beat in self.watch.beats.items() if rank != self.world.rank)

    def _find_stall(self, now: float) -> Stall | None:
        return self.watch.silent(now) or (self.watch.stuck(now) if self.world.is_main else None)

    def _sleep(self) -> None:
        """Wait for the next beat; a longer sleep than that means that this process was stopped."""
        before = time.monotonic()
        self.pulse.leaving.wait(self.interval)
        overslept = time.monotonic() - before - self.interval
        if overslept > self.interval:
            self.watch.forgive(overslept)

    def _describe(self, stall: Stall) -> str:
        lines = [self._describe_rank(rank, stall) for rank in stall.ranks[:MOST_STACKS]]
        if more := stall.ranks[MOST_STACKS:]:
            lines.append(f"So have ranks {', '.join(map(str, more))}.")
        others = {
            rank: beat for rank, beat in self.watch.beats.items() if rank not in stall.ranks and beat.left is None
        }
        if others:
            ahead = max(others.values(), key=lambda beat: beat.place)
            lines.append(f"The others wait, the furthest of them {ahead.says}.")
        return "\n".join([*lines, "All ranks end now. " + RESUME])

    def _describe_rank(self, rank: int, stall: Stall) -> str:
        beat = self.watch.beats[rank]
        name = self._name(rank)
        if beat.left:
            return f"{name} ended {beat.says} with {beat.left}"
        seconds = f"{self.timeout_seconds:g} s"
        if stall.are_silent:
            return (
                f"{name} has given no sign of life for {seconds}; its last came {beat.says}. Its stack cannot be had: "
                "the process is stopped or has ended, its machine is lost, or a native call holds its interpreter (then "
                "its own output has the stack)."
            )
        stack = self._stack() if rank == self.world.rank else self._stack_of(rank)
        return f"{name} has not moved for {seconds}; it is {beat.says}. Its stack, the innermost call last:\n{stack}"

    def _stack_of(self, rank: int) -> str:
        key = f"stack/{rank}"
        return self.keys.get(key).decode() if self.keys.check([key]) else "  (it sent none)"

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self.world.size} (host {self.hosts.get(rank, 'unknown')})"

    def _stack(self) -> str:
        frame = sys._current_frames().get(self.main_thread)
        frames = traceback.format_stack(frame)[-MOST_FRAMES:] if frame is not None else ["  (the thread has ended)\n"]
        return "".join(frames).rstrip()

    def _obey(self, verdict: str, *, gone: Sequence[int]) -> None:
        """End this process; rank 0 only when the others have read why, because it may hold the store."""
        self.keys.add("read", 1)
        if self.world.is_main:
            num_readers = sum(beat.left is None and rank not in gone for rank, beat in self.watch.beats.items())
            until = time.monotonic() + LINGER_SECONDS
            while self.keys.add("read", 0) < num_readers and time.monotonic() < until:
                time.sleep(self.interval / 10)
        end_process(verdict)

    def _guard(self) -> None:
        """Show that this process lives; end it when the store has not answered for the timeout."""
        while True:
            self._show_life()
            before = time.monotonic()
            if self.finished.wait(self.interval):
                break
            now = time.monotonic()
            overslept = now - before - self.interval
            if overslept > self.interval:
                self.answered_at += overslept
            elif now - self.answered_at > self.timeout_seconds and not self.is_store_gone:
                self._lose_store(f"has not answered for {self.timeout_seconds:g} s")
                break
        self.guardian.communicate()

    def _show_life(self) -> None:
        assert self.guardian.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # someone has ended the guardian
            self.guardian.stdin.write(b".")

    def _lose_store(self, what: str) -> None:
        """End this process: without the store nothing is known of anyone."""
        zero = self.watch.beats[0]
        end_process(
            f"rank 0's store {what}: the process or machine of {self._name(0)}, or of the launcher that holds the store, "
            f"has ended, is stopped or cannot be reached, and its stack cannot be had; rank 0 was last heard of "
            f"{zero.says}. This is {self.world.name}, {self.mine.says}. {RESUME}"
        )


def _is_of_a_group(error: BaseException | None) -> bool:
    """Whether a collective failed; gloo has no type of error of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _name_lost(store: Store, world: World) -> str | None:
    """Which ranks have ended, or send nothing while a beat should come; None when all are there."""

    def look_twice() -> str | None:
        keys = own_connection(store, "heartbeat")
        first = _read_beats(keys, world.size)
        time.sleep(LOOK_SECONDS)
        second = _read_beats(keys, world.size)
        ended = [f"rank {rank} ended {beat.says} with {beat.left}" for rank, beat in second.items() if beat.left]
        silent = [rank for rank, beat in second.items() if beat.left is None and beat.count == first[rank].count]
        gone = [f"rank {rank} is gone, its last sign of life came {second[rank].says}" for rank in silent]
        return "; ".join([*ended, *gone]) or None

    try:
        return within(LOOK_SECONDS + LINGER_SECONDS, look_twice)
    except (dist.DistError, TimeoutError):
        return "rank 0's store is gone, and so are rank 0's process or machine or its launcher"


def _read_beats(keys: Store, size: int) -> dict[int, Beat]:
    there = [rank for rank in range(size) if keys.check([f"beat/{rank}"])]
    return {rank: Beat(**json.loads(keys.get(f"beat/{rank}"))) if rank in there else Beat() for rank in range(size)}


def _say(message: str) -> None:
    logger.error("%s", message)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
