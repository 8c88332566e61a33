"""How much memory a process keeps for what it allocates and frees: the C library's allocator, replayed.

Of what is freed little goes back to the system, and what is kept does not fit all that comes next: a process that trains
on a processor may be half as large again as its tensors. Source: glibc 2.36, malloc/malloc.c, and mallopt(3).
"""

import bisect
from collections.abc import Iterable

from nexa_ops.forecast.live_bytes import Event

MAPPED_FROM = 32 * 2**20
"""Larger pieces are mapped for themselves and given back. The limit begins lower and grows with what is freed, so that the
first steps, or the rows that were encoded before them, bring it here."""
ALIGNMENT = 64
"""Of torch's tensors on a processor."""


class Heap:
    """Best fit among the free pieces, neighbours merged.

    Its end could go back to the system, but never does: something small that stays has always come to lie there.
    """

    def __init__(self) -> None:
        self.mapped = 0
        self.end = 0
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
        if size >= MAPPED_FROM:
            self.mapped += size
            return None, size
        place, self.end = self.end, self.end + size
        return place, size

    def free(self, place: int | None, size: int) -> None:
        if place is None:
            self.mapped -= size
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
        self._give(place, size)

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
