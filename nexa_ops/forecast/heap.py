"""How much memory a process keeps for what it allocates and frees: the C library's allocator, replayed.

Of what is freed little goes back to the system, and what is kept does not fit all that comes next. torch asks for
aligned memory: such a piece needs a hole a little larger than itself, so that it does not fit where one of its own size
lay, unless its slivers are free as well; small objects that live on have often come to lie in them. So a process may be
twice as large as its tensors. Source: glibc 2.36, malloc/malloc.c, _int_memalign; and mallopt(3).
"""

import bisect
from collections import deque
from collections.abc import Sequence

from nexa_ops.forecast.live_bytes import Event

MAPPED_FROM = 32 * 2**20
"""Larger pieces are mapped for themselves and given back. The limit begins lower and grows with what is freed, so that the
first steps, or the rows that were encoded before them, bring it here."""
HEADER, UNIT, LEAST = 8, 16, 32
"""Bytes of a piece that are the allocator's, what its size is a multiple of, and the smallest one."""
ALIGNMENT = 64
"""Of torch's tensors on a processor."""
SMALL = 40
"""Bytes of an object that fits a sliver: with each tensor the interpreter and autograd make some."""
LIFETIMES = (0.4, 0.5, 0.6, 0.7, 0.8)
"""How long such an object lives, in forward and backward passes: what autograd makes at a place in the one is gone at the same
place in the other. How the pieces come to lie hangs on chance, so the mean of several replays is taken."""


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
        size = max(LEAST, -(-(size_bytes + HEADER) // UNIT) * UNIT)
        index = bisect.bisect_left(self._free, (size, 0))
        if index < len(self._free):
            found, place = self._free[index]
            self._take(place, found)
            if found - size < LEAST:
                return place, found
            self._give(place + size, found - size)
            return place, size
        if size >= MAPPED_FROM:
            self.mapped += size
            return None, size
        place = self._place_before.get(self.end, self.end)
        if place < self.end:
            self._take(place, self.end - place)
        self.end = place + size
        return place, size

    def allocate_aligned(self, size_bytes: int) -> tuple[int | None, int]:
        """Likewise for a tensor: a larger piece, of which the slivers before and behind the tensor are free again."""
        place, found = self.allocate(size_bytes + ALIGNMENT + LEAST)
        if place is None:
            return place, found
        size = max(LEAST, -(-(size_bytes + HEADER) // UNIT) * UNIT)
        begin = -(-(place + UNIT) // ALIGNMENT) * ALIGNMENT - UNIT
        if 0 < begin - place < LEAST:
            begin += ALIGNMENT
        if begin > place:
            self.free(place, begin - place)
        if place + found - begin - size < LEAST:
            return begin, place + found - begin
        self.free(begin + size, place + found - begin - size)
        return begin, size

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


def replay(events: Sequence[Event], *, pass_length: float) -> dict[str, int]:
    """The most bytes that a process keeps in each phase, where a forward and backward pass makes `pass_length` events."""
    replays = [_replay(events, outlives=int(lifetime * pass_length)) for lifetime in LIFETIMES]
    return {phase: sum(peaks[phase] for peaks in replays) // len(replays) for phase in replays[0]}


def _replay(events: Sequence[Event], *, outlives: int) -> dict[str, int]:
    heap = Heap()
    places: dict[int, tuple[int | None, int]] = {}
    small: deque[tuple[int, tuple[int | None, int]]] = deque()  # until which event, and where
    peaks: dict[str, int] = {}
    for number, event in enumerate(events):
        while small and small[0][0] <= number:
            heap.free(*small.popleft()[1])
        if event.size_bytes < 0:
            heap.free(*places.pop(event.storage))
        elif event.size_bytes:
            places[event.storage] = heap.allocate_aligned(event.size_bytes)
            small.append((number + outlives, heap.allocate(SMALL)))
        peaks[event.phase] = max(peaks.get(event.phase, 0), heap.resident)
    return peaks
