"""Work on many files at once, and how far it is."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from nexa_core.progress import Progress

SECONDS_BETWEEN_UPDATES = 1.0

Item = TypeVar("Item")


class Meter:
    """Counts what all threads have moved, or read."""

    def __init__(self, num_files: int):
        self._lock, self._num_files = threading.Lock(), num_files
        self._began, self._bytes, self._files = time.monotonic(), 0, 0

    def moved(self, size_bytes: int) -> None:
        with self._lock:
            self._bytes += size_bytes

    def finished(self) -> None:
        with self._lock:
            self._files += 1

    def show(self, progress: Progress) -> None:
        rate = self._bytes / 1e6 / max(time.monotonic() - self._began, 1e-3)
        progress.update(self._bytes // 1_000_000, f"{self._files:,}/{self._num_files:,} files, {rate:,.1f} MB/s")


def megabytes(size_bytes: int) -> int:
    """What a `Progress` in MB has as its total; not 0 for a few bytes."""
    return -(-size_bytes // 1_000_000)


def in_parallel(
    work: Callable[[Item], None], items: Sequence[Item], num_threads: int, meter: Meter, progress: Progress
) -> None:
    """Do them all; after a failure nothing new is begun, and the first failure is raised."""
    waiting = deque(items)

    def work_off() -> None:
        while True:
            try:
                item = waiting.popleft()
            except IndexError:
                return
            work(item)

    num_threads = min(num_threads, len(items))
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        # A future for each item would have to be waited for one by one, which takes half of a sync of small files.
        coming = {pool.submit(work_off) for _ in range(num_threads)}
        try:
            while coming:
                done, coming = wait(coming, timeout=SECONDS_BETWEEN_UPDATES, return_when=FIRST_EXCEPTION)
                meter.show(progress)
                for future in done:
                    future.result()
        finally:
            waiting.clear()
