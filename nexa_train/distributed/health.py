"""The health of a run's processes: what was looked at on each, what they have to share, and the verdict they act on."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch.distributed.distributed_c10d import Store

from nexa_core.errors import NodeError
from nexa_train.distributed.agreement import ClockReading, Gathered, agree
from nexa_train.distributed.world import World

CLOCK_LIMIT_SECONDS = 2.0
"""Logs show whole seconds: clocks this close put what several nodes say into order. Machines that keep time by NTP are
within a tenth of a second, so one further off has lost its time service."""
MOST_DIFFERENCES = 8
"""Differing facts that a message spells out; two trees of packages may differ in hundreds."""

RENDEZVOUS = "rendezvous"
"""The name of the check that rank 0's port answers."""
START = "start"
"""The name of the failed check of a rank that could not get so far as to look at its node; it has no facts to compare."""

REMEDIES = {
    "code": "Put the same commit on every node.",
    "package": "Install the same requirements.txt on every node.",
    "python": "Install the same Python on every node.",
    "config": "Start every node with the same config file and overrides.",
    "run": "Let every node share one laboratory folder (NEXA_ROOT), or bring the copies up to date.",
    "threads": "Set training.num_threads, or the same OMP_NUM_THREADS on every node.",
    "source": "Give every node the same checkpoint to begin at.",
    "pretrained": "Put the same folder of pretrained files on every node.",
    "dataset": "Copy the prepared dataset and its manifest from one node to the others, or share the folder.",
    "device": "Set training.device to the one that all nodes have.",
    "driver": "Install the same NVIDIA driver on every node.",
    "cuda": "Install the same build of torch on every node.",
    "nccl": "Install the same build of torch on every node, and look for an LD_PRELOAD or LD_LIBRARY_PATH.",
}
"""By the first word of a fact's name."""


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool | None
    """None: it could not be looked at here, for the reason that `says` gives. Nobody is refused for that."""
    says: str
    do: str = ""
    """What to do when it did not pass."""

    @property
    def failed(self) -> bool:
        return self.passed is False


@dataclass(frozen=True)
class NodeReport:
    """What one rank found on its node."""

    rank: int
    node: int
    host: str
    facts: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def name(self) -> str:
        return f"rank {self.rank} (node {self.node}, host {self.host})"


@dataclass(frozen=True)
class Health:
    """The verdict on all ranks."""

    size: int
    nodes: tuple[NodeReport, ...] = ()
    """Every rank's report, on the rank that judged them: rank 0, unless it never came. None on the others."""
    together: tuple[Check, ...] = ()
    """What concerns all ranks."""
    problems: tuple[str, ...] = ()
    """Each names the rank, what was found on both sides, and what to do."""
    none_began: bool = False
    """Whether every rank reported that it could not start."""

    @property
    def is_fit(self) -> bool:
        return not self.problems

    def with_checks(self, checks: Iterable[Check]) -> "Health":
        """This and further checks that concern all ranks, such as those of the collectives."""
        checks = tuple(checks)
        found = tuple(_join(check.name, check.says, check.do) for check in checks if check.failed)
        return replace(self, together=(*self.together, *checks), problems=(*self.problems, *found))

    def require_pass(self) -> None:
        """Raises NodeError naming every problem."""
        if self.problems:
            raise NodeError(
                "\n".join([f"{self.size} processes cannot train together:", *map(_indented, self.problems)])
            )

    def as_json(self) -> dict[str, Any]:
        """What `health.json` holds."""
        return {
            "fit": self.is_fit,
            "num_processes": self.size,
            "problems": list(self.problems),
            "together": [asdict(check) for check in self.together],
            "facts": self.nodes[0].facts if self.nodes else {},
            "nodes": [
                {
                    "rank": report.rank,
                    "node": report.node,
                    "host": report.host,
                    "differing_facts": dict(report.facts.items() - self.nodes[0].facts.items()),
                    "checks": [asdict(check) for check in report.checks],
                }
                for report in self.nodes
            ],
        }

    def as_text(self) -> str:
        lines = [_line(f"rank {report.rank}", check) for report in self.nodes for check in report.checks]
        lines += [_line("all", check) for check in self.together]
        verdict = f"{self.size} process{'es' if self.size > 1 else ''} fit to train together"
        return "\n".join([*lines, verdict if self.is_fit else "not fit to train: mend the lines marked BAD"])


def require_rendezvous(world: World, checks: Iterable[Check]) -> None:
    """Raises NodeError when this rank cannot reach the store: it cannot tell the others, who will miss its report."""
    for check in checks:
        if check.name == RENDEZVOUS and check.failed:
            raise NodeError(f"{world.name}: {_join(check.name, check.says, check.do)}")


def share_health(
    store: Store | None,
    world: World,
    facts: Mapping[str, str],
    checks: Sequence[Check],
    *,
    timeout_seconds: float,
    host: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Health:
    """The health of all ranks, the same verdict on each; through the store alone, so that nothing hangs.

    They are unfit when a check failed somewhere, a fact differs, a clock is off, or a rank did not report in time.

    Raises:
        NodeError: the store is gone or does not answer.
    """
    mine = NodeReport(world.rank, world.node, host or socket.gethostname(), dict(facts), tuple(checks))
    gathered_here: list[Gathered] = []

    def judge(gathered: Gathered) -> Any:
        gathered_here.append(gathered)
        return _judge(gathered, world, timeout_seconds)

    verdict = agree(
        store,
        world,
        topic="health",
        report=asdict(mine),
        judge=judge,
        timeout_seconds=timeout_seconds,
        clock=clock,
    )
    nodes = tuple(map(_read_report, gathered_here[0].reports.values())) if gathered_here else ()
    return Health(
        size=world.size,
        nodes=nodes,
        together=tuple(Check(**check) for check in verdict["together"]),
        problems=tuple(verdict["problems"]),
        none_began=verdict["none_began"],
    )


def missing_ranks(reports: Mapping[int, Any], world: World, timeout_seconds: float) -> list[Check]:
    """A failed check for every rank that has not reported."""
    return [
        Check(
            "report",
            False,
            f"rank {rank} of {world.size} (node {rank // world.local_size}) did not report within {timeout_seconds:g} s",
            "Look at that node's own log: it never started, failed before it could report, or cannot reach rank 0.",
        )
        for rank in range(world.size)
        if rank not in reports
    ]


def majority(values: Mapping[int, str]) -> str:
    """The value that most ranks have; the lowest rank's where several are equally frequent."""
    counted = Counter(values[rank] for rank in sorted(values))
    return counted.most_common(1)[0][0]


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0, 2-5`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    said = ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {said}"


def _judge(gathered: Gathered, world: World, timeout_seconds: float) -> dict[str, Any]:
    reports = {rank: _read_report(report) for rank, report in gathered.reports.items()}
    failed = [
        _join(f"{report.name}: {check.name}", check.says, check.do)
        for report in reports.values()
        for check in report.checks
        if check.failed
    ]
    together = [
        *missing_ranks(reports, world, timeout_seconds),
        *_silent(gathered, reports, world),
        *_clocks(gathered, reports),
        *_facts(reports),
    ]
    num_failed = sum(any(check.name == START for check in report.checks) for report in reports.values())
    return {
        "none_began": num_failed == world.size,
        "together": [asdict(check) for check in together],
        "problems": [*failed, *(_join(check.name, check.says, check.do) for check in together if check.failed)],
    }


def _silent(gathered: Gathered, reports: Mapping[int, NodeReport], world: World) -> list[Check]:
    """Ranks that reported and then fell silent; rank 0 is one when another rank has to judge for it."""
    quiet = [rank for rank, reading in gathered.clocks.items() if reading is None]
    if not world.is_main and reports.keys() == set(range(world.size)):
        quiet = [0]
    remedy = "Look at its log: it has ended, is stopped, or has lost its network."
    return [Check("report", False, f"{reports[rank].name} reported and then fell silent", remedy) for rank in quiet]


def _clocks(gathered: Gathered, reports: Mapping[int, NodeReport]) -> list[Check]:
    readings = {rank: reading for rank, reading in gathered.clocks.items() if reading is not None}
    if not readings:
        return []
    off = {
        rank: reading
        for rank, reading in readings.items()
        if abs(reading.offset_seconds) - reading.error_seconds > CLOCK_LIMIT_SECONDS
    }
    if off:
        said = "; ".join(f"{reports[rank].name} is {_offset(reading)} rank 0's" for rank, reading in off.items())
        remedy = "Start a time service (chrony, systemd-timesyncd) on that node and wait until it has set the clock."
        return [Check("clocks", False, f"{said}; {CLOCK_LIMIT_SECONDS:g} s are allowed", remedy)]
    widest = max(abs(reading.offset_seconds) + reading.error_seconds for reading in readings.values())
    says = f"all within {max(widest, 0.001):.3f} s of rank 0's ({CLOCK_LIMIT_SECONDS:g} s are allowed)"
    return [Check("clocks", True, says)]


def _facts(reports: Mapping[int, NodeReport]) -> list[Check]:
    reports = {rank: report for rank, report in reports.items() if report.facts}
    if found := _differences(reports):
        return found
    if not reports:
        return []
    num_facts = len(next(iter(reports.values())).facts)
    return [Check("facts", True, f"{num_facts} of code, packages and settings, equal on {name_ranks(list(reports))}")]


def _differences(reports: Mapping[int, NodeReport]) -> list[Check]:
    names = sorted({name for report in reports.values() for name in report.facts})
    if len({report.facts.get("run") for report in reports.values()}) > 1:  # who has nothing to train has fewer facts
        names = [name for name in names if all(name in report.facts for report in reports.values())]
    found = []
    for name in names:
        values = {rank: report.facts.get(name, "nothing") for rank, report in reports.items()}
        if len(set(values.values())) > 1:
            found.append(Check(name, False, _difference(name, values, reports), REMEDIES.get(name.split(" ")[0], "")))
    if len(found) > MOST_DIFFERENCES:
        rest = ", ".join(check.name for check in found[MOST_DIFFERENCES:])
        found = [*found[:MOST_DIFFERENCES], Check("facts", False, f"these differ as well: {rest}")]
    return found


def _difference(name: str, values: Mapping[int, str], reports: Mapping[int, NodeReport]) -> str:
    usual = majority(values)
    others: dict[str, list[int]] = {}
    for rank, value in values.items():
        if value != usual:
            others.setdefault(value, []).append(rank)
    said = [
        f"{name_ranks(ranks)} ({', '.join(dict.fromkeys(f'host {reports[rank].host}' for rank in ranks))}) "
        f"{'has' if len(ranks) == 1 else 'have'} {_short(value)}"
        for value, ranks in others.items()
    ]
    rest = [rank for rank, value in values.items() if value == usual]
    return f"differs: {', '.join(said)}; {name_ranks(rest)} {'has' if len(rest) == 1 else 'have'} {_short(usual)}"


def _read_report(value: Mapping[str, Any]) -> NodeReport:
    return NodeReport(**{**value, "checks": tuple(Check(**check) for check in value["checks"])})


def _offset(reading: ClockReading) -> str:
    how = "ahead of" if reading.offset_seconds > 0 else "behind"
    return f"{abs(reading.offset_seconds):.1f} s {how}"


def _short(value: str) -> str:
    """A digest by its first characters, any other value whole."""
    return value[:12] if len(value) == 64 else value


def _join(name: str, says: str, do: str) -> str:
    return f"{name}: {says}. {do}".rstrip()


def _indented(text: str) -> str:
    return "  " + text.replace("\n", "\n    ")


def _line(whose: str, check: Check) -> str:
    mark = {True: "ok ", False: "BAD", None: "?  "}[check.passed]
    return f"  {mark}  {whose:<8} {check.name:<14} {check.says}"
