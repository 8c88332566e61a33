"""torchrun around train, on one node of possibly many: the body of `scripts/launch_ddp.sh`."""

import argparse
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from nexa_core.command import fail, run_to_exit
from nexa_core.config import RunConfig, load_config
from nexa_core.endings import HANDLED_SIGNALS, Interrupts, raise_when_told
from nexa_core.errors import NodeError
from nexa_core.paths import Layout
from nexa_ops.nodes import Node, read_node

TRAIN = "nexa_train.train"

# torchrun kills workers that have not ended so long after a SIGTERM: time for their step and checkpoint, and still
# less than the schedulers' files grant before they kill torchrun.
SHUTDOWN_SECONDS = 100

# How long the nodes wait for each other: they start at different times, and the first may have a dataset to prepare.
RENDEZVOUS_SECONDS = 1800


def launch(arguments: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Train with these options of `train` in the processes that the environment asks for, and exit as they do.

    Raises:
        UserError: the config or the environment is wrong; said once, before any process is started.
        NodeError: the nodes did not meet.
    """
    config = _read_config(arguments)
    node = read_node(environment, config, num_gpus=_num_gpus(config))
    if node.rank == 0:
        from nexa_train.job import ensure_dataset  # loads what only training needs

        ensure_dataset(Layout.from_environment(environment), config.data)  # before any process waits for another
    if node.num_processes > 1:
        cores = os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // node.num_processes)))
    run_torchrun([*torchrun_arguments(node), "--module", TRAIN, *arguments], node)


def torchrun_arguments(node: Node) -> list[str]:
    """How torchrun is told of a node's place.

    The static rendezvous keeps node N at rank N, so that a node which comes back computes what it did before.
    """
    common = [
        f"--nnodes={node.num_nodes}",
        f"--nproc-per-node={node.num_processes}",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        f"--signals-to-handle={HANDLED_SIGNALS}",
    ]
    if node.is_alone and node.master_port is None:
        return [*common, "--standalone"]
    meeting = [
        "--rdzv-backend=static",
        f"--node-rank={node.rank}",
        f"--master-addr={node.master_addr}",
        f"--master-port={node.master_port}",
        f"--rdzv-conf=timeout={RENDEZVOUS_SECONDS}",
    ]
    return [*common, *meeting, *([f"--rdzv-id={node.job_id}"] if node.job_id else [])]


def run_torchrun(arguments: Sequence[str], node: Node) -> None:
    """Run torchrun; where it would exit with 1 whatever went wrong, exit with the code of the first worker that failed.

    Raises:
        NodeError: the nodes did not meet, or a worker was killed.
        Preempted: torchrun was told to end, and its workers have saved.
        NexaError: likewise, and one of them has not; with its exit code, or 1 where it was killed.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    try:
        with Interrupts(SignalException):
            torchrun(list(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            killed = f"Rank {rank} (process {failure.pid}) was killed by {failure.signal_name()}"
            raise NodeError(f"{killed}; the same command with --resume continues at the newest checkpoint.") from None
        fail(f"rank {rank} ended with exit code {failure.exitcode}; what it said is above", failure.exitcode)
    except SignalException as error:
        raise_when_told(error)
    except (
        UnboundLocalError
    ) as error:  # the signal came between two lines of torch's metrics.prof, whose `finally` then fails
        if not isinstance(error.__context__, SignalException):
            raise
        raise_when_told(error.__context__.with_traceback(error.__traceback__))
    except (DistError, RendezvousError) as error:
        raise NodeError(
            f"Node {node.rank} of {node.num_nodes} did not meet the others at {node.master_addr}:{node.master_port}: "
            f"{str(error).splitlines()[0]}. Start all nodes, with the same MASTER_ADDR (the first node's) and MASTER_PORT "
            "(free there, and open between them)."
        ) from None


def _read_config(arguments: Sequence[str]) -> RunConfig:
    """The config that these options of `train` name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=Path("configs/default.yaml"))
    parser.add_argument("--override", action="append", default=[])
    known, _ = parser.parse_known_args(arguments)
    return load_config(known.config, RunConfig, overrides=known.override)


def _num_gpus(config: RunConfig) -> int:
    """GPUs that the config lets a run use here."""
    if config.training.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    run_to_exit(lambda: launch(sys.argv[1:], os.environ))
