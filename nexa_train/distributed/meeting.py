"""How the processes of a run come together: each looks at its node, all compare, and only then do they join."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nexa_core import durable
from nexa_core.errors import NexaError, NodeError, UserError
from nexa_train.distributed.group import Group, join
from nexa_train.distributed.health import START, Check, Health, require_rendezvous, share_health
from nexa_train.distributed.heartbeat import Heartbeat
from nexa_train.distributed.world import World

PATIENCE_SECONDS = 5.0
"""What joining may take longer than the heartbeat does to find and name a process that is stopped or gone."""


@dataclass(frozen=True)
class Meeting:
    group: Group
    heartbeat: Heartbeat
    health: Health | None
    """What was found; None for a process that is alone."""


@contextlib.contextmanager
def meet(
    world: World,
    *,
    environment: Mapping[str, str],
    folder: Path,
    need_bytes: int,
    device: torch.device,
    config: Mapping[str, Any],
    dataset_fingerprint: str,
    facts: Mapping[str, str],
    unfit_path: Path,
    timeout_seconds: float,
) -> Iterator[Meeting]:
    """All processes together, watched by a heartbeat; a process that is alone meets nobody.

    Args:
        folder: where the run will be written.
        need_bytes: what it will write there at least.
        config: the settings that all of them have to share.
        facts: what else they have to.
        unfit_path: where rank 0 keeps what was found when they are unfit, for there is no run's folder yet.

    Raises:
        NodeError: on every process alike, naming each node that is unfit and what to do; or a process was lost.
    """
    if world.is_alone:
        yield Meeting(Group(world), Heartbeat(None, world, timeout_seconds=timeout_seconds), None)
        return
    # Imported here: a process that is alone needs none of it.
    from nexa_train.distributed.collectives import check_collectives
    from nexa_train.distributed.facts import describe_node
    from nexa_train.distributed.node_checks import check_node
    from nexa_train.distributed.store import open_store, read_endpoint

    checks = check_node(
        world,
        folder=folder,
        need_bytes=need_bytes,
        device=device,
        endpoint=read_endpoint(environment),
        endpoint_seconds=timeout_seconds,
    )
    require_rendezvous(world, checks)
    store = open_store(world, environment, timeout_seconds=timeout_seconds)
    shared = {**describe_node(device=device, config=config, dataset_fingerprint=dataset_fingerprint), **facts}
    health = share_health(store, world, shared, checks, timeout_seconds=timeout_seconds)
    _require_pass(health, world, unfit_path)
    # The group is left last: a process that goes first says so through its heartbeat, and not by a broken connection.
    with contextlib.ExitStack() as left_last, Heartbeat(store, world, timeout_seconds=timeout_seconds) as heartbeat:
        with heartbeat.phase("joining the others"):
            seconds = timeout_seconds + PATIENCE_SECONDS
            group = left_last.enter_context(join(world, store=store, device=device, timeout_seconds=seconds))
            health = health.with_checks(check_collectives(store, world, device, timeout_seconds=seconds))
            _require_pass(health, world, unfit_path)
        yield Meeting(group, heartbeat, health)


def _require_pass(health: Health, world: World, unfit_path: Path) -> None:
    if world.is_main and not health.is_fit:
        with contextlib.suppress(OSError):  # a disk that cannot be written to may be what was found
            durable.write_json(unfit_path, health.as_json())
    health.require_pass()


def compare(
    world: World, facts: Mapping[str, str], *, environment: Mapping[str, str], unfit_path: Path, timeout_seconds: float
) -> None:
    """What a process does that has nothing to train: it meets the others to find that they have not either.

    Raises:
        NodeError: on every process alike: some have.
    """
    if world.is_alone:
        return
    from nexa_train.distributed.store import open_store

    store = open_store(world, environment, timeout_seconds=timeout_seconds)
    _require_pass(share_health(store, world, facts, [], timeout_seconds=timeout_seconds), world, unfit_path)


def tell_others(
    world: World, error: NexaError, *, environment: Mapping[str, str], unfit_path: Path, timeout_seconds: float
) -> None:
    """Have all hear of an error that keeps this process from beginning; returns where it keeps every one from it.

    Then it is no single node's, and the caller's to raise.

    Raises:
        NodeError: on every process alike: others could begin.
    """
    if world.is_alone:
        return
    from nexa_train.distributed.store import open_store

    failed = Check(START, False, str(error).rstrip("."))
    try:
        store = open_store(world, environment, timeout_seconds=timeout_seconds)
        health = share_health(store, world, {}, [failed], timeout_seconds=timeout_seconds)
    except NodeError as unheard:
        raise NodeError(f"{error}\nNor could the others be told: {unheard}") from None
    except UserError:  # no place to meet at is described, to any of them
        return
    if not health.none_began:
        _require_pass(health, world, unfit_path)
