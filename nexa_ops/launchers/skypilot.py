"""SkyPilot: a task on whichever cloud or cluster has the machines.

Source: https://docs.skypilot.co/en/latest/reference/yaml-spec.html and .../running-jobs/distributed-jobs.html
"""

import shlex
from pathlib import Path
from typing import Any

from nexa_ops.launchers.plan import Launcher, Plan, as_yaml, path_below, require_option

LABORATORY = "/mnt/nexa"

SETUP = """\
set -e
uv venv --allow-existing --python 3.11
source .venv/bin/activate
uv pip install -r requirements.txt
"""

RUN = """\
source .venv/bin/activate
export NNODES="$SKYPILOT_NUM_NODES" NODE_RANK="$SKYPILOT_NODE_RANK"
MASTER_ADDR="$(head -n 1 <<<"$SKYPILOT_NODE_IPS")"
export MASTER_ADDR
{processes}
bash scripts/launch_ddp.sh {arguments}
"""


def render(plan: Plan) -> str:
    """The task."""
    options = plan.options
    resources: dict[str, Any] = {"cpus": f"{plan.cpus_per_node}+"}
    processes = f"export NPROC_PER_NODE={plan.processes_per_node}"
    if plan.gpus_per_node:
        gpu_type = require_option(plan, "gpu_type", "SkyPilot looks for machines by the name of their GPU, e.g. H100.")
        resources["accelerators"] = f"{gpu_type}:{plan.gpus_per_node}"
        processes = 'export NPROC_PER_NODE="$SKYPILOT_NUM_GPUS_PER_NODE"'
    if options.image:
        resources["image_id"] = f"docker:{options.image}"
    if plan.num_nodes > 1:
        require_option(plan, "volume", "the nodes of a run share one laboratory folder, or none could resume it.")
    arguments = ["--config", path_below(plan), *plan.train_arguments[2:]]
    task = {
        "name": plan.name,
        "num_nodes": plan.num_nodes,
        "workdir": ".",
        "resources": resources,
        **({"volumes": {LABORATORY: options.volume}, "envs": {"NEXA_ROOT": LABORATORY}} if options.volume else {}),
        "setup": SETUP,
        "run": RUN.format(processes=processes, arguments=shlex.join(arguments)),
    }
    return f"# Made by: {plan.made_by}\n" + as_yaml(task)


def command(plan: Plan, path: Path) -> list[str]:
    return ["sky", "launch", "--cluster", plan.name, str(path)]


SKYPILOT = Launcher("SkyPilot", render, command, options=frozenset({"gpu_type", "image", "volume"}))
