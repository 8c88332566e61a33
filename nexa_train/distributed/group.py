"""The process group: joining it, and the few things that processes say to each other."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _set_pg_timeout

from nexa_core.errors import NodeError
from nexa_train.distributed.store import first_line, within
from nexa_train.distributed.world import World

# A heartbeat watches the processes; a wait of its own would only end those that are waiting rightly.
LONGEST_WAIT = timedelta(days=1)
JOIN_GRACE_SECONDS = 1.0
"""Beyond the timeout: a store whose host is stopped keeps to none."""


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

    def begin_any(self, flag: int) -> "Pending":
        """Begin to ask whether the flag is set anywhere; of numbers, which is the highest."""
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

    def wait(self) -> int:
        if self.request is not None:
            self.request.wait()
        return int(self.value)


@contextlib.contextmanager
def join(world: World, *, store: Store | None, device: torch.device, timeout_seconds: float) -> Iterator[Group]:
    """The group of all processes, left again at the block's end: gloo between CPUs, NCCL between GPUs.

    Args:
        timeout_seconds: for joining alone; what is said in the group may take `LONGEST_WAIT`.

    Raises:
        NodeError: not all have joined by then.
    """
    if store is None:
        yield Group(world)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        control = within(timeout_seconds + JOIN_GRACE_SECONDS, partial(_join, world, store, device, timeout_seconds))
    except (RuntimeError, TimeoutError) as error:  # the library's own errors all are
        raise NodeError(
            f"{world.name} could not join the process group: {first_line(error)}. Look at the other ranks' logs; check "
            "that the nodes reach each other on every port, and set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME."
        ) from error
    try:
        yield Group(world, control)
    finally:
        dist.destroy_process_group()


def _join(world: World, store: Store, device: torch.device, timeout_seconds: float) -> Any:
    """Form the default group; returns the one on the CPU."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)  # each thread has its own
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        device_id=device if is_cuda else None,
    )
    control = dist.new_group(backend="gloo", timeout=timeout) if is_cuda else dist.group.WORLD
    for group in {dist.group.WORLD, control}:
        _set_pg_timeout(LONGEST_WAIT, group)
    return control
