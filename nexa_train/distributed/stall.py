"""Who holds a run up: a judgement on what the ranks' heartbeats say, with no thread, store or clock of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself."""

    count: int = 0
    """Rises with every beat that is sent, also while nothing moves: a rank whose count stands still is stopped or gone."""
    step: int = -1
    part: int = 0
    """What it has begun within the step, counted."""
    doing: str = "starting"
    excused: bool = False
    """In a phase that may take long, such as validation."""
    left: str | None = None
    """None while it runs; empty when it has come to its end; otherwise the error that it ended with."""

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.part

    @property
    def says(self) -> str:
        at = f"at step {self.step}" if self.step >= 0 else "before its first step"
        return f"{at} ({self.doing})"


@dataclass(frozen=True)
class Stall:
    ranks: tuple[int, ...]
    """Who holds the others up."""
    are_silent: bool
    """Whether they do not even send; if they do, they stand still."""


class Watch:
    """Follows the beats of some ranks; times are an observer's own monotonic seconds, so clocks need not agree."""

    def __init__(self, ranks: Sequence[int], *, timeout_seconds: float, now: float):
        self._timeout_seconds = timeout_seconds
        self.beats = dict.fromkeys(ranks, Beat())
        self._heard_at = dict.fromkeys(ranks, now)
        self._slowest: tuple[tuple[int, int], frozenset[int]] | None = None
        self._moved_at = now

    def see(self, beats: Mapping[int, Beat], now: float) -> None:
        """Take in the beats that have come; a rank that sent none is left out."""
        for rank, beat in beats.items():
            if beat.count != self.beats[rank].count:
                self._heard_at[rank] = now
            self.beats[rank] = beat
        running = {rank: beat for rank, beat in self.beats.items() if beat.left != ""}
        front = min((beat.place for beat in running.values()), default=(0, 0))
        slowest = frozenset(rank for rank, beat in running.items() if beat.place == front)
        # Others may be waiting for a slow rank that is excused: nobody is late while one of the slowest is.
        if (front, slowest) != self._slowest or not slowest or any(running[rank].excused for rank in slowest):
            self._slowest = (front, slowest)
            self._moved_at = now

    def forgive(self, seconds: float) -> None:
        """The observer itself was stopped that long and heard nothing: it cannot blame others for it."""
        self._moved_at += seconds
        self._heard_at = {rank: heard + seconds for rank, heard in self._heard_at.items()}

    def silent(self, now: float) -> Stall | None:
        """The ranks that have sent nothing for the timeout, together with those that fell silent soon after."""
        quiet = {rank: now - heard for rank, heard in self._heard_at.items() if self.beats[rank].left != ""}
        if max(quiet.values(), default=0.0) <= self._timeout_seconds:
            return None
        return Stall(tuple(rank for rank, seconds in quiet.items() if seconds > self._timeout_seconds / 2), True)

    def stuck(self, now: float) -> Stall | None:
        """The slowest ranks, when they have not moved for the timeout."""
        if self._slowest is None or now - self._moved_at <= self._timeout_seconds:
            return None
        return Stall(tuple(sorted(self._slowest[1])), False)
