"""Work for other processes of this machine, as far ahead as somebody takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from nexa_core.errors import NexaError

AHEAD = 2  # for each process
KEEPS_MEMORY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Has a process use its memory again, piece after piece, instead of giving it back and asking for it: a sixth of its time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], num_processes: int) -> Iterator[Result]:
    """What `work` makes of each item, in order; no more than `AHEAD * num_processes` results wait to be taken.

    Raises:
        NexaError: a process was killed.
    """
    if num_processes == 1:
        yield from map(work, items)
        return
    # Loky's processes need no guarded main module, unlike multiprocessing's.
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    executor = get_reusable_executor(num_processes, env=KEEPS_MEMORY)
    begun: deque[Any] = deque()
    try:
        for item in items:
            begun.append(executor.submit(work, item))
            if len(begun) >= AHEAD * num_processes:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    except TerminatedWorkerError:
        raise NexaError(
            "A process was killed, most often because the memory was full. `memory_limit:` in the config makes it use less; the "
            "same command goes on where it was."
        ) from None
    finally:
        for future in begun:
            future.cancel()
