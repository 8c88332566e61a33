"""The key-value store that all processes of a run share, before and beside their process group."""

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # torch.distributed has it, and tells type checkers of these two only
from torch.distributed.distributed_c10d import PrefixStore, Store

from nexa_core.errors import NodeError, UserError
from nexa_train.distributed.world import World

T = TypeVar("T")


def open_store(world: World, environment: Mapping[str, str], *, timeout_seconds: float) -> Store | None:
    """The store at MASTER_ADDR:MASTER_PORT: the launcher's where it has one, or else rank 0's own; none when alone.

    Raises:
        UserError: the launcher did not say where it is.
        NodeError: it cannot be reached.
    """
    if world.is_alone:
        return None
    host, port = read_endpoint(environment)
    launcher_has_one = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    def connect() -> Store:
        return TCPStore(
            host,
            port,
            world.size,
            is_master=world.is_main and not launcher_has_one,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
        )

    try:
        store = within(timeout_seconds + 1, connect)
    except (dist.DistError, TimeoutError) as error:
        raise NodeError(
            f"{world.name} cannot reach the store at {host}:{port} within {timeout_seconds:g} s: {first_line(error)}. "
            "Is rank 0 up, and MASTER_ADDR and MASTER_PORT the same on all nodes and open between them?"
        ) from None
    # A restarted attempt must not read what an earlier one left in a launcher's store.
    return PrefixStore(f"attempt_{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def read_endpoint(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the store.

    Raises:
        UserError: they are not in the environment, or the port is no number.
    """
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        raise UserError(
            f"MASTER_ADDR is {host!r} and MASTER_PORT {port!r}: several processes need a host and a port to meet at; "
            "use torchrun or scripts/launch_ddp.sh, which set them."
        )
    return host, int(port)


def own_connection(store: Store, prefix: str) -> Store:
    """A connection for one thread alone, to keys of its own: on a shared one, a blocked call holds up all others."""
    cloneable: Any = store  # the type stubs do not know
    return PrefixStore(prefix, cloneable.clone())


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns; left behind in its thread when it takes longer.

    A store's own timeout does not help where its host is stopped: then every call on it blocks for ever.

    Raises:
        TimeoutError: it took longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 -- the thread ends here; it is raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"nothing came back within {seconds:g} s")
    return results[0]


def first_line(error: BaseException) -> str:
    """What went wrong, without the native stack that the library adds."""
    return str(error).partition("\n")[0]
