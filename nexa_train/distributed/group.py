"""The process group: joining it, and the few things that processes say to each other."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from nexa_core.errors import NodeError
from nexa_train.distributed.world import World

# A heartbeat watches the processes; a wait of its own would only end those that are waiting rightly.
LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True)
class Group:
    """All processes of a run; every method is called by all of them in the same order. Alone, each is free."""

    world: World
    control: Any = None
    """A group on the CPU, for what the host decides."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; in the library's own order."""
        if not self.world.is_alone:
            dist.all_reduce(values)
        return values

    def sum_on_host(self, values: Tensor) -> Tensor:
        """Likewise for a tensor on the CPU."""
        if not self.world.is_alone:
            dist.all_reduce(values, group=self.control)
        return values

    def swap(self, values: Tensor, partner: int) -> Tensor:
        """What `partner` has in the place of `values`."""
        theirs = torch.empty_like(values)
        sent, received = dist.P2POp(dist.isend, values, partner), dist.P2POp(dist.irecv, theirs, partner)
        for request in dist.batch_isend_irecv([sent, received]):
            request.wait()
        return theirs

    def from_main(self, value: Any) -> Any:
        """The main process's value, for every process; what JSON can say."""
        if self.world.is_alone:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor(len(text))
        dist.broadcast(size, src=0, group=self.control)
        text = text if self.world.is_main else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(text, src=0, group=self.control)
        return json.loads(text.numpy().tobytes())

    def from_all(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.world.is_alone:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def require_of_all(self, problem: str) -> None:
        """Raises NodeError on every process, with the same words, when one says a problem; without one it is empty."""
        said = self.from_all([self.world.name, problem])
        if problems := [f"{name}: {problem}" for name, problem in said if problem]:
            raise NodeError("\n".join(problems))

    def begin_any(self, flag: bool) -> "Pending":
        """Begin to ask whether the flag is set anywhere."""
        if self.world.is_alone:
            return Pending(flag, None)
        raised = torch.tensor(int(flag), dtype=torch.int32)
        return Pending(raised, dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.control, async_op=True))

    def wait_for_all(self) -> None:
        if not self.world.is_alone:
            dist.barrier(group=self.control)


@dataclass(frozen=True)
class Pending:
    """An answer under way."""

    value: Any
    request: Any

    def wait(self) -> bool:
        if self.request is not None:
            self.request.wait()
        return bool(self.value)


@contextlib.contextmanager
def join(world: World, *, store: Store | None, device: torch.device) -> Iterator[Group]:
    """The group of all processes, left again at the block's end: gloo between CPUs, NCCL between GPUs."""
    if store is None:
        yield Group(world)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=LONGEST_WAIT,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if backend == "nccl" else dist.group.WORLD
        yield Group(world, control)
    finally:
        dist.destroy_process_group()
