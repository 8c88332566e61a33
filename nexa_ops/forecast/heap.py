"""How much memory a process keeps for what it allocates and frees: the C library's allocator, replayed.

What is freed does not all go back to the system, and what is kept does not fit all that comes next: a process that
trains on a processor is a third larger than its tensors. Source: glibc 2.36, malloc/malloc.c, and mallopt(3).
"""

import bisect
from collections.abc import Iterable

from nexa_ops.forecast.live_bytes import Event

FIRST_THRESHOLD, LAST_THRESHOLD = 128 * 2**10, 32 * 2**20
"""From this size on, memory is mapped for itself; the limit grows with what is freed, up to the last."""
PAD = 128 * 2**10
ALIGNMENT = 64
"""Of torch's tensors on a processor."""


class Heap:
    """Best fit among the free pieces, neighbours merged; the end of the heap goes back to the system when it is long."""

    def __init__(self) -> None:
        self.mapped = 0
        self.end = 0
        """Where the memory of the heap ends."""
        self._used = 0
        """Where what is used of it ends."""
        self._threshold, self._trim = FIRST_THRESHOLD, FIRST_THRESHOLD
        self._free: list[tuple[int, int]] = []  # (size, place), sorted
        self._size_at: dict[int, int] = {}  # of free pieces
        self._place_before: dict[int, int] = {}  # where the free piece begins that ends there

    @property
    def resident(self) -> int:
        return self.end + self.mapped

    def allocate(self, size_bytes: int) -> tuple[int | None, int]:
        """Place (None where mapped for itself) and size of a piece that holds so many bytes."""
        size = -(-(size_bytes + 16) // ALIGNMENT) * ALIGNMENT
        index = bisect.bisect_left(self._free, (size, 0))
        if index < len(self._free):
            found, place = self._free[index]
            self._take(place, found)
            if found > size:
                self._give(place + size, found - size)
            return place, size
        if self.end - self._used < size:
            if size >= self._threshold:
                self.mapped += size
                return None, size
            self.end = self._used + size + PAD
        place, self._used = self._used, self._used + size
        return place, size

    def free(self, place: int | None, size: int) -> None:
        if place is None:
            self.mapped -= size
            if self._threshold < size <= LAST_THRESHOLD:
                self._threshold, self._trim = size, 2 * size
            return
        before = self._place_before.get(place)
        if before is not None:
            size += self._size_at[before]
            self._take(before, self._size_at[before])
            place = before
        if place + size in self._size_at:
            after = self._size_at[place + size]
            self._take(place + size, after)
            size += after
        if place + size < self._used:
            self._give(place, size)
            return
        self._used = place
        if self.end - place > self._trim:
            self.end = place + PAD

    def _give(self, place: int, size: int) -> None:
        bisect.insort(self._free, (size, place))
        self._size_at[place] = size
        self._place_before[place + size] = place

    def _take(self, place: int, size: int) -> None:
        del self._free[bisect.bisect_left(self._free, (size, place))]
        del self._size_at[place]
        del self._place_before[place + size]


def replay(events: Iterable[Event]) -> dict[str, int]:
    """The most bytes that the process keeps in each phase."""
    heap = Heap()
    places: dict[int, tuple[int | None, int]] = {}
    peaks: dict[str, int] = {}
    for event in events:
        if event.size_bytes < 0:
            heap.free(*places.pop(event.storage))
        elif event.size_bytes:
            places[event.storage] = heap.allocate(event.size_bytes)
        peaks[event.phase] = max(peaks.get(event.phase, 0), heap.resident)
    return peaks
