"""Saving beside the training: a step is held up only while the state is copied; a thread writes the copy."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WRITER_NICENESS = 5
"""Training comes first, and still a checkpoint is written before the next one is due, be it a few seconds later."""


class Copies:
    """Copies of nested tensors on the CPU, into memory that is taken once and used again each time.

    Args:
        alone: whether a single thread copies. A second team of torch's threads would slow down the one that trains for good:
            with more threads than cores, OpenMP's no longer wait for each other awake.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None
        self._from_gpu = False

    def take(self, value: Any) -> Any:
        """`value` with each tensor copied; tensors that are one stay one. The last copies are overwritten.

        From a GPU it only begins: `wait` says when the copies are whole. Later work on the GPU waits by itself.
        """
        copied = self._copy(value, "", {})
        if self._from_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return copied

    def wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, value: Any, path: str, seen: dict[tuple[Any, ...], Tensor]) -> Any:
        match value:
            case Tensor():
                place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
                if place not in seen or not value.numel():
                    seen[place] = self._into_buffer(value.detach(), path)
                return seen[place]
            case dict():
                return {key: self._copy(item, f"{path}/{key}", seen) for key, item in value.items()}
            case list() | tuple():
                return type(value)(self._copy(item, f"{path}/{index}", seen) for index, item in enumerate(value))
            case _:
                return value

    def _into_buffer(self, tensor: Tensor, path: str) -> Tensor:
        self._from_gpu |= tensor.is_cuda
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[path] = buffer
        if self._alone and not tensor.is_cuda:
            np.copyto(_as_bytes(buffer), _as_bytes(tensor))
            return buffer
        return buffer.copy_(tensor, non_blocking=True)


def _as_bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


class Writer:
    """Does one piece of work at a time in a thread; what fails there is raised in the thread that trains.

    Where processor time is short the thread takes the smaller part of it: all of it while someone waits for the work.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_step_back)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def begin(self, work: Callable[[], None]) -> None:
        """Do `work` beside the caller."""
        self.wait()
        self._pending = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the work raised, if it is done; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the work is done; raises what it raised, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # waits for the work
        if error is None:
            self.wait()
        elif self._pending is not None and (failure := self._pending.exception()) is not None:
            logger.error("The last checkpoint could not be written either: %s", failure)


def _step_back() -> None:
    """Give the calling thread a lower priority, where the system knows priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)
