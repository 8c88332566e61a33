"""A node's place among those of a job, read from the environment that its launcher set."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nexa_core.config import RunConfig
from nexa_core.errors import UserError

# Ours, then torchrun's own (Kubeflow Trainer sets these), then Slurm's; the first that is set counts.
NUM_NODES = ("NNODES", "PET_NNODES", "SLURM_NNODES")
NODE_RANK = ("NODE_RANK", "PET_NODE_RANK", "SLURM_NODEID")
NUM_PROCESSES = ("NPROC_PER_NODE", "PET_NPROC_PER_NODE")
MASTER_ADDR = ("MASTER_ADDR", "PET_MASTER_ADDR")
MASTER_PORT = ("MASTER_PORT", "PET_MASTER_PORT")

# torchrun's words for a number that it would find out itself; so do we.
AUTOMATIC = ("auto", "gpu", "cpu")
DEFAULT_PORT = 29500  # torchrun's
LAST_PORT = 65535

# Two jobs on one machine need two ports. 20,000 to 29,999 lie below the ports that Linux gives to outgoing connections.
FIRST_SLURM_PORT, NUM_SLURM_PORTS = 20_000, 10_000


@dataclass(frozen=True)
class Node:
    """One node of a job, and where the nodes meet."""

    rank: int
    num_nodes: int
    num_processes: int
    """Training processes on each node."""
    master_addr: str
    master_port: int | None
    """None: any free port, which a node that is alone can choose."""
    job_id: str | None
    """Keeps the jobs of one scheduler apart."""

    @property
    def is_alone(self) -> bool:
        return self.num_nodes == 1


def read_node(environment: Mapping[str, str], config: RunConfig, *, num_gpus: int) -> Node:
    """This node's place; alone where nothing says otherwise.

    Args:
        num_gpus: how many of them are visible here; a process for each, unless the environment or the config has a number.

    Raises:
        UserError: a variable is malformed or missing, or the processes are not as many as the config says.
    """
    if int(environment.get("SLURM_LOCALID") or 0) > 0:
        raise UserError("launch_ddp.sh starts the processes of a node itself: run it with srun --ntasks-per-node=1.")
    num_nodes = _number(environment, NUM_NODES, least=1) or 1
    rank = _number(environment, NODE_RANK, least=0)
    if num_nodes == 1:
        rank = 0
    elif rank is None:
        raise UserError(f"{num_nodes} nodes, and nothing says which one this is: set NODE_RANK, 0 to {num_nodes - 1}.")
    elif rank >= num_nodes:
        raise UserError(
            f"{_first(environment, NODE_RANK)[0]}={rank}: the ranks of {num_nodes} nodes are 0 to {num_nodes - 1}."
        )
    num_processes = _num_processes(environment) or processes_per_node(config, num_nodes=num_nodes, num_gpus=num_gpus)
    require_world_size(config, num_nodes * num_processes, given=f"{num_nodes} x {num_processes} (nodes x processes)")
    return Node(
        rank=rank,
        num_nodes=num_nodes,
        num_processes=num_processes,
        master_addr=_master_addr(environment, num_nodes),
        master_port=_master_port(environment, num_nodes),
        job_id=environment.get("SLURM_JOB_ID") or None,
    )


def processes_per_node(config: RunConfig, *, num_nodes: int, num_gpus: int) -> int:
    """Processes of each node: what the config's world size leaves to it, or else one for each GPU, or one.

    Raises:
        UserError: the config's world size cannot be shared out evenly.
    """
    world_size = config.training.distributed.world_size
    if world_size % num_nodes and world_size > 1:
        raise UserError(
            f"training.distributed.world_size is {world_size}, which {num_nodes} nodes cannot share out evenly: "
            "make it a multiple of them, or 1 for whatever the launcher starts."
        )
    return world_size // num_nodes if world_size > 1 else max(1, num_gpus)


def require_world_size(config: RunConfig, launched: int, *, given: str) -> None:
    """Raises UserError unless the config leaves the number of processes open (1) or names this very number."""
    if config.training.distributed.world_size not in (1, launched):
        raise UserError(
            f"{given} are {launched} processes, and training.distributed.world_size is "
            f"{config.training.distributed.world_size}: make them equal, or world_size 1 for whatever the launcher starts."
        )


def first_host(nodelist: str) -> str:
    """The first name of a Slurm node list: gpu003 of ``gpu[003-010,012],cpu1``."""
    expanded = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodelist)
    return expanded.partition(",")[0]


def _num_processes(environment: Mapping[str, str]) -> int | None:
    if _first(environment, NUM_PROCESSES)[1] in AUTOMATIC:
        return None
    return _number(environment, NUM_PROCESSES, least=1)


def _master_addr(environment: Mapping[str, str], num_nodes: int) -> str:
    given = _first(environment, MASTER_ADDR)[1]
    if given or num_nodes == 1:
        return given or "127.0.0.1"
    if nodelist := environment.get("SLURM_JOB_NODELIST"):
        return first_host(nodelist)
    raise UserError(
        f"{num_nodes} nodes, and nothing says where they meet: set MASTER_ADDR to the first node's name or address."
    )


def _master_port(environment: Mapping[str, str], num_nodes: int) -> int | None:
    if port := _number(environment, MASTER_PORT, least=1, most=LAST_PORT):
        return port
    if num_nodes == 1:
        return None
    job_id = _number(environment, ("SLURM_JOB_ID",), least=0)
    return DEFAULT_PORT if job_id is None else FIRST_SLURM_PORT + job_id % NUM_SLURM_PORTS


def _number(
    environment: Mapping[str, str], names: tuple[str, ...], *, least: int, most: int | None = None
) -> int | None:
    name, text = _first(environment, names)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least or (most is not None and int(text) > most):
        allowed = f"from {least} to {most}" if most is not None else f"of {least} or more"
        raise UserError(f"{name}={text}: expected a whole number {allowed}.")
    return int(text)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """Name and value of the first variable that is set and not empty; both empty when none is."""
    return next(((name, environment[name]) for name in names if environment.get(name)), ("", ""))
