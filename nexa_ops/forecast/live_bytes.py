"""Recording every storage that operations make, and when nothing refers to it any more."""

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Event:
    """A storage made or, with a negative size, gone."""

    storage: int
    """Its number, from 0."""
    size_bytes: int
    phase: str


class LiveBytes(TorchDispatchMode):
    """Under it, `events` grows by each storage that is made or goes, and `now` is what all of them hold.

    Autograd's saved tensors, views and gradients are in it because they are storages, whatever the model is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.events: list[Event] = []
        self.now = 0
        self._known = WeakIdKeyDictionary()
        self._count = 0

    def peak_of(self, phase: str) -> int:
        """The most bytes that were held at once in a phase."""
        now = peak = 0
        for event in self.events:
            now += event.size_bytes
            if event.phase == phase:
                peak = max(peak, now)
        return peak

    def count_in(self, phase: str) -> int:
        """Events of a phase."""
        return sum(event.phase == phase for event in self.events)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, out)
        return out

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = None
            size_bytes = storage.nbytes()
            weakref.finalize(storage, self._record, self._count, -size_bytes)
            self._record(self._count, size_bytes)
            self._count += 1
        return tensor

    def _record(self, storage: int, size_bytes: int) -> None:
        self.now += size_bytes
        self.events.append(Event(storage, size_bytes, self.phase))
