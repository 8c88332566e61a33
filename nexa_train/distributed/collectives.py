"""What ranks compute and exchange once they have joined: a product whose bits must agree, and the time of their links."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from nexa_core import digests
from nexa_core.environment import cpu_name
from nexa_train.distributed.agreement import Gathered, agree
from nexa_train.distributed.health import Check, majority, missing_ranks, name_ranks
from nexa_train.distributed.world import World

PRODUCT_SIZE = 512
PRODUCT_REPEATS = 3
SUM_BYTES = {"4 KiB": 2**12, "1 MiB": 2**20, "16 MiB": 2**24}
SWAP_BYTES = {"cpu": 2**22, "cuda": 2**28}
MOST_ROUNDS = 3
"""Partners that each rank swaps with: one is enough to be cleared, and a slow rank is slow with all of them."""
SLOW_FACTOR = 5.0
"""Links of one kind differ by less than two."""
SLOW_FLOOR_SECONDS = {"cpu": 0.1, "cuda": 0.01}
"""Below this a swap holds no training up, and the median of fast ranks is noise."""
SLOW_LIMIT_SECONDS = 5.0
"""Above this, 7 Mbit/s (of GPUs 0.4 Gbit/s), a link is broken whatever the others are like: with two ranks there is no other."""

Product = Callable[[torch.device], Tensor]
Swap = Callable[[Tensor, int, timedelta], None]


def seeded_product(device: torch.device) -> Tensor:
    """The product of two matrices that every rank draws alike; no other generator is touched."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, generator=generator).to(device) for _ in range(2))
    return left @ right


def swap_with(values: Tensor, partner: int, timeout: timedelta) -> None:
    """Send a rank the values while receiving as many."""
    theirs = torch.empty_like(values)
    sent, received = dist.P2POp(dist.isend, values, partner), dist.P2POp(dist.irecv, theirs, partner)
    for request in dist.batch_isend_irecv([sent, received]):
        request.wait(timeout)
    _finish(values.device)


def check_collectives(
    store: Store | None,
    world: World,
    device: torch.device,
    *,
    timeout_seconds: float,
    product: Product = seeded_product,
    swap: Swap = swap_with,
) -> list[Check]:
    """The same checks on every rank, after the process group exists; one that failed names the ranks.

    In an all-reduce all ranks end together, so its time tells how fast they are and not who is slow. That, each rank's
    best swap with a few partners tells: a healthy rank is fast with one of them at least.

    Raises:
        NodeError: the store is gone or does not answer.
    """
    timeout = timedelta(seconds=timeout_seconds)
    report: dict[str, Any] = {"machine": _describe_machine(device), "products": _products(product, device)}
    try:
        if not world.is_alone:
            report["device_type"] = device.type
            report["sums"] = _time_sums(world, device, timeout)
            report["swap_seconds"] = _time_swaps(world, device, timeout, swap)
    except RuntimeError as error:  # the library's own errors all are
        report["error"] = str(error).partition("\n")[0]
    verdict = agree(
        store,
        world,
        topic="collectives",
        report=report,
        judge=partial(_judge, world=world, timeout_seconds=timeout_seconds),
        timeout_seconds=timeout_seconds,
    )
    return [Check(**check) for check in verdict]


def partners_of(world: World) -> list[int]:
    """The ranks that this one swaps with: of other nodes where there are any, so that all links timed are of one kind."""
    count, number = (world.size, world.rank) if world.num_nodes == 1 else (world.num_nodes, world.node)
    rounds = range(min(MOST_ROUNDS, count - 1 if count % 2 == 0 else count))
    found = [find_partner(number, index, count) for index in rounds]
    if world.num_nodes == 1:
        return [rank for rank in found if rank is not None]
    return [node * world.local_size + world.local_rank for node in found if node is not None]


def find_partner(rank: int, round_index: int, size: int) -> int | None:
    """Who a rank swaps with in a round of a tournament in which everyone meets everyone once; None sits out.

    Ranks i and j meet in the round that i + j leaves modulo the odd number of rounds; who would meet itself meets the
    last rank of an even number instead.
    """
    num_rounds = size - 1 if size % 2 == 0 else size
    if rank == num_rounds:
        return round_index * (num_rounds + 1) // 2 % num_rounds
    partner = (round_index - rank) % num_rounds
    if partner != rank:
        return partner
    return size - 1 if size % 2 == 0 else None


def _products(product: Product, device: torch.device) -> list[str]:
    """The digest of each repetition; one that differs from the others is a fault of this machine's."""
    repeats = (product(device).cpu().numpy().tobytes() for _ in range(PRODUCT_REPEATS))
    return [digests.of_bytes(data) for data in repeats]


def _describe_machine(device: torch.device) -> str:
    """Machines of which this is equal have to compute the same bits."""
    facts = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        torch.backends.cpu.get_cpu_capability(),
        f"torch {torch.__version__}",
        f"{torch.get_num_threads()} threads",
    )
    return ", ".join(facts)


def _time_sums(world: World, device: torch.device, timeout: timedelta) -> dict[str, dict[str, Any]]:
    """By size: seconds of the median all-reduce, and whether each gave the right sum."""
    timed = {}
    for name, size_bytes in SUM_BYTES.items():
        seconds, is_right = [], True
        for _ in range(3):
            values = torch.full((size_bytes // 4,), float(world.rank + 1), device=device)
            _finish(device)
            began = time.monotonic()
            work = dist.all_reduce(values, async_op=True)
            assert work is not None
            work.wait(timeout)
            _finish(device)
            seconds.append(time.monotonic() - began)
            is_right = is_right and bool((values == world.size * (world.size + 1) // 2).all())
        timed[name] = {"seconds": statistics.median(seconds), "is_right": is_right}
    return timed


def _time_swaps(world: World, device: torch.device, timeout: timedelta, swap: Swap) -> float:
    """Seconds of this rank's fastest swap with any of its partners."""
    values = torch.zeros(SWAP_BYTES[device.type] // 4, device=device)
    seconds = []
    for partner in partners_of(world):
        for _ in range(2):  # the first opens the connection
            began = time.monotonic()
            swap(values, partner, timeout)
            seconds.append(time.monotonic() - began)
    return min(seconds)


def _judge(gathered: Gathered, *, world: World, timeout_seconds: float) -> list[dict[str, Any]]:
    reports = gathered.reports
    missing = missing_ranks(reports, world, timeout_seconds)
    checks = [*missing, *_failures(reports), *_steadiness(reports), *_agreement(reports)]
    if not world.is_alone and not any(check.failed for check in (*missing, *_failures(reports))):
        checks += [_sums(reports), _links(reports)]
    return [asdict(check) for check in checks]


def _failures(reports: Mapping[int, Any]) -> list[Check]:
    said: dict[str, list[int]] = {}
    for rank, report in reports.items():
        if "error" in report:
            said.setdefault(report["error"], []).append(rank)
    remedy = "Check that the nodes reach each other on every port, and set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME."
    return [Check("exchange", False, f"{name_ranks(ranks)}: {error}", remedy) for error, ranks in said.items()]


def _steadiness(reports: Mapping[int, Any]) -> list[Check]:
    """Ranks whose own repetitions differ."""
    remedy = "That node computes wrongly: take it out of service and test its memory and processor."
    return [
        Check("product", False, f"rank {rank} does not repeat its own product ({report['machine']})", remedy)
        for rank, report in reports.items()
        if len(set(report["products"])) > 1
    ]


def _agreement(reports: Mapping[int, Any]) -> list[Check]:
    machines: dict[str, dict[int, str]] = {}
    for rank, report in reports.items():
        machines.setdefault(report["machine"], {})[rank] = report["products"][0]
    checks = []
    for machine, products in machines.items():
        usual = majority(products)
        odd = [rank for rank, digest in products.items() if digest != usual]
        if odd:
            rest = [rank for rank, digest in products.items() if digest == usual]
            theirs = ", ".join(sorted({products[rank][:12] for rank in odd}))
            says = (
                f"{name_ranks(odd)} computed {theirs} and {name_ranks(rest)} {usual[:12]}, "
                f"though their machines are equal ({machine})"
            )
            if len(odd) >= len(rest):
                says += "; which of them is wrong, two alone cannot tell"
            checks.append(
                Check("product", False, says, "Take the odd node out of service and test its memory and processor.")
            )
        else:
            checks.append(Check("product", True, f"{name_ranks(list(products))} computed {usual[:12]} ({machine})"))
    if len(machines) > 1:
        checks.append(
            Check("machines", True, f"of {len(machines)} kinds: the same bits are not to be expected of them")
        )
    return checks


def _sums(reports: Mapping[int, Any]) -> Check:
    wrong = [
        rank for rank, report in reports.items() if not all(timed["is_right"] for timed in report["sums"].values())
    ]
    if wrong:
        remedy = "Run it again with NCCL_P2P_DISABLE=1, and test the links of that node."
        return Check("all-reduce", False, f"{name_ranks(wrong)} received a wrong sum", remedy)
    said = []
    for size in SUM_BYTES:
        seconds = statistics.median(report["sums"][size]["seconds"] for report in reports.values())
        said.append(f"{size} {seconds * 1000:.1f} ms")
    return Check("all-reduce", True, f"right on {name_ranks(list(reports))}: {', '.join(said)}")


def _links(reports: Mapping[int, Any]) -> Check:
    """Each rank's fastest swap against the median of all."""
    best = {rank: report["swap_seconds"] for rank, report in reports.items()}
    kind = reports[0]["device_type"]
    size = f"{SWAP_BYTES[kind] // 2**20} MiB"
    median = statistics.median(best.values())
    limit = min(max(SLOW_FACTOR * median, SLOW_FLOOR_SECONDS[kind]), SLOW_LIMIT_SECONDS)
    slow = {rank: seconds for rank, seconds in best.items() if seconds > limit}
    if not slow:
        says = f"{size} there and back in {median * 1000:.1f} ms, {max(best.values()) * 1000:.1f} on the slowest rank"
        return Check("links", True, says)
    said = ", ".join(f"rank {rank} {seconds * 1000:.0f} ms" for rank, seconds in slow.items())
    says = f"{size} there and back took {said}; the median is {median * 1000:.1f} ms and {limit * 1000:.0f} are allowed"
    return Check("links", False, says, "Look at that node's network cards, cables and other traffic, or leave it out.")


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
