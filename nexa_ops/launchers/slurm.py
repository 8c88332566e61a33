"""Slurm: a batch script that starts launch_ddp.sh on each node, and goes back into the queue when it was preempted.

Source: the manual pages of sbatch, srun and scontrol, https://slurm.schedmd.com/man_index.html
"""

import math
import shlex
from pathlib import Path

from nexa_core.errors import Preempted
from nexa_ops.launchers.plan import GRACE_SECONDS, Launcher, Plan

SCRIPT = """\
#!/usr/bin/env bash
# Made by: {made_by}
# Submit it from the laboratory's folder, on a file system that all nodes share, with the Python environment active.
{directives}
set -euo pipefail

export NPROC_PER_NODE={processes}

# One task a node: launch_ddp.sh starts the node's processes, and reads the node's place from Slurm's variables. A node
# whose neighbour is lost ends by itself within training.distributed.timeout_seconds; --wait is for one that cannot.
code=0
srun --ntasks-per-node=1 --cpus-per-task={cpus} --kill-on-bad-exit=0 --wait={wait} \\
  bash scripts/launch_ddp.sh {arguments} || code=$?

# {preempted}: told to end {grace} seconds before its time limit or its preemption, it has saved, and goes on where it stopped.
# A job that was cancelled does not get here: scancel ends this script as well.
if [[ "$code" -eq {preempted} ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def render(plan: Plan) -> str:
    """The batch script."""
    options = plan.options
    gpus = f"{options.gpu_type}:{plan.gpus_per_node}" if options.gpu_type else f"{plan.gpus_per_node}"
    directives = [
        f"--job-name={plan.name}",
        f"--nodes={plan.num_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={plan.cpus_per_node}",
        *([f"--gpus-per-node={gpus}"] if plan.gpus_per_node else []),
        *([f"--time={options.time}"] if options.time else []),
        f"--signal=TERM@{GRACE_SECONDS}",
        "--requeue",
        "--open-mode=append",
    ]
    return SCRIPT.format(
        made_by=plan.made_by,
        directives="\n".join(f"#SBATCH {directive}" for directive in directives),
        processes=plan.processes_per_node,
        cpus=plan.cpus_per_node,
        wait=math.ceil(plan.config.training.distributed.timeout_seconds) + 60,
        arguments=shlex.join(plan.train_arguments),
        preempted=Preempted.exit_code,
        grace=GRACE_SECONDS,
    )


def command(plan: Plan, path: Path) -> list[str]:
    return ["sbatch", str(path)]


SLURM = Launcher("Slurm", render, command, options=frozenset({"gpu_type", "time"}))
