"""What is launched, and where: all that a scheduler's file is made from, checked."""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nexa_core.config import RunConfig
from nexa_core.errors import UserError
from nexa_ops.nodes import processes_per_node, require_world_size

# Seconds from a scheduler's SIGTERM to the end of a job. torchrun gives its workers less (nexa_ops.torchrun).
GRACE_SECONDS = 120
CPUS_PER_GPU = 8

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
LONGEST_NAME = 40  # pods are called <name>-node-0-<index>-<5 letters>, and 63 letters is all that a label may have
TIME = re.compile(r"(?:(?P<days>\d{1,3})-)?(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")
GPU_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@-]*")
PATTERNS = {
    "gpu_type": (GPU_TYPE, "a name such as H100"),
    "time": (TIME, "[days-]hours:minutes:seconds, e.g. 24:00:00"),
    "image": (IMAGE, "a container image, e.g. nexacompute:0.1.0"),
    "volume": (DNS_LABEL, "lower-case letters, digits and -, beginning with a letter"),
}


@dataclass(frozen=True)
class Options:
    """What only some schedulers have a use for; None where it was not given."""

    gpu_type: str | None = None
    time: str | None = None
    image: str | None = None
    volume: str | None = None

    def given(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def time_seconds(self) -> int | None:
        if self.time is None or (match := TIME.fullmatch(self.time)) is None:
            return None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class Plan:
    """One training job on a scheduler's nodes."""

    to: str
    config: RunConfig
    config_path: Path
    overrides: tuple[str, ...]
    num_nodes: int
    gpus_per_node: int
    cpus_per_node: int
    processes_per_node: int
    options: Options

    @property
    def name(self) -> str:
        """The config's name as a DNS label: ``python-docs`` of ``python_docs``."""
        return re.sub(r"[^a-z0-9]+", "-", self.config.name.lower()).strip("-")

    @property
    def train_arguments(self) -> list[str]:
        """Options of `train`; a first start and every later one are the same command."""
        overrides = [part for override in self.overrides for part in ("--override", override)]
        return ["--config", self.config_path.as_posix(), *overrides, "--resume"]

    @property
    def made_by(self) -> str:
        """The command that makes this file again."""
        options = [
            part for name, value in self.options.given().items() for part in (f"--{name.replace('_', '-')}", value)
        ]
        return shlex.join(
            [
                *("nexa", "launch", "--to", self.to, *self.train_arguments[:-1]),
                *("--nodes", str(self.num_nodes), "--gpus-per-node", str(self.gpus_per_node)),
                *("--cpus-per-node", str(self.cpus_per_node), *options, "--dry-run"),
            ]
        )


@dataclass(frozen=True)
class Launcher:
    """A scheduler: how its file is made, the tool that takes it, and the options that have a meaning to it."""

    title: str
    render: Callable[[Plan], str]
    command: Callable[[Plan, Path], list[str]]
    options: frozenset[str]
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Of options that it cannot do without; the file's first comment says which were taken."""


def make_plan(
    launcher: Launcher,
    *,
    to: str,
    config: RunConfig,
    config_path: Path,
    overrides: tuple[str, ...],
    num_nodes: int,
    gpus_per_node: int | None,
    cpus_per_node: int | None,
    options: Options,
) -> Plan:
    """The plan, once everything in it fits together.

    Args:
        gpus_per_node: without it as many as the config's processes where they train on GPUs, else none.

    Raises:
        UserError: an option is malformed or without effect here, or the processes are not as many as the config says.
    """
    _check_options(launcher, options)
    device = config.training.device
    if gpus_per_node is None:
        gpus_per_node = processes_per_node(config, num_nodes=num_nodes, num_gpus=0) if device == "cuda" else 0
    if gpus_per_node and device == "cpu":
        raise UserError(f"training.device is cpu, and --gpus-per-node {gpus_per_node} would stand idle: make it 0.")
    if not gpus_per_node and device == "cuda":
        raise UserError("training.device is cuda, and --gpus-per-node 0 has none: ask for at least 1.")
    num_processes = gpus_per_node or processes_per_node(config, num_nodes=num_nodes, num_gpus=0)
    require_world_size(config, num_nodes * num_processes, given=f"--nodes {num_nodes} x {num_processes} processes")
    plan = Plan(
        to=to,
        config=config,
        config_path=config_path,
        overrides=overrides,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node or CPUS_PER_GPU * max(1, gpus_per_node),
        processes_per_node=num_processes,
        options=Options(**{**asdict(options), **launcher.defaults, **options.given()}),
    )
    if not DNS_LABEL.fullmatch(plan.name) or len(plan.name) > LONGEST_NAME:
        raise UserError(
            f"The job would be called '{plan.name}' after the config's name: schedulers take lower-case letters, digits and -, "
            f"beginning with a letter, {LONGEST_NAME} at most. Use another with --override name=..."
        )
    if unprintable := [text for text in plan.train_arguments if not text.isprintable()]:
        raise UserError(f"{unprintable[0]!r}: line breaks and control characters cannot stand in a scheduler's file.")
    return plan


def require_option(plan: Plan, name: str, why: str) -> str:
    """Raises UserError where the scheduler cannot do without an option that was not given."""
    value = plan.options.given().get(name)
    if value is None:
        raise UserError(f"--to {plan.to} needs --{name.replace('_', '-')}: {why}")
    return value


def path_below(plan: Plan) -> str:
    """The config's path from the working folder.

    Raises:
        UserError: it lies outside, so that the nodes would not have it.
    """
    relative = Path(os.path.relpath(plan.config_path)).as_posix()
    if relative.startswith("../"):
        raise UserError(f"{plan.config_path} is outside the working folder, and only what is in it gets to the nodes.")
    return relative


def as_yaml(*documents: Mapping[str, Any]) -> str:
    """YAML documents with their keys in the order given and texts of several lines as blocks."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are; equal values are written twice instead of by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _check_options(launcher: Launcher, options: Options) -> None:
    for name, value in options.given().items():
        option = f"--{name.replace('_', '-')}"
        if name not in launcher.options:
            allowed = ", ".join(f"--{each.replace('_', '-')}" for each in sorted(launcher.options))
            raise UserError(f"{option} has no effect on {launcher.title}, which takes {allowed}.")
        pattern, expected = PATTERNS[name]
        if not pattern.fullmatch(value):
            raise UserError(f"{option} {value}: expected {expected}.")
