"""Handing a training run to a scheduler: its file made from the run's own config, shown or submitted."""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nexa_core import durable
from nexa_core.config import RunConfig, load_config
from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_ops.launchers.kubernetes import KUBERNETES
from nexa_ops.launchers.plan import Launcher, Options, Plan, make_plan
from nexa_ops.launchers.skypilot import SKYPILOT
from nexa_ops.launchers.slurm import SLURM

LAUNCHERS = {"slurm": SLURM, "k8s": KUBERNETES, "sky": SKYPILOT}


def launch(
    to: str,
    *,
    config_path: Path,
    overrides: Sequence[str],
    num_nodes: int,
    gpus_per_node: int | None,
    cpus_per_node: int | None,
    options: Options,
    output: Path | None,
    dry_run: bool,
) -> str:
    """Make the scheduler's file and submit it; a dry run does not submit.

    Returns:
        What to show: the file itself where a dry run wrote it nowhere, or else what was done.

    Raises:
        UserError: something does not fit together, or the scheduler's tool is missing or refused the job.
    """
    if to not in LAUNCHERS:
        raise UserError(unknown("launcher", to, LAUNCHERS))
    launcher = LAUNCHERS[to]
    plan = make_plan(
        launcher,
        to=to,
        config=load_config(config_path, RunConfig, overrides=overrides),
        config_path=config_path,
        overrides=tuple(overrides),
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        options=options,
    )
    text = launcher.render(plan)
    if not dry_run:
        _submit(launcher, plan, text, output)
        return f"{plan.name} was handed to {launcher.title}{f', as in {output}' if output else ''}"
    if output is None:
        return text.rstrip("\n")
    durable.write_text(output, text)
    return f"wrote {output}; submit it with: {shlex.join(launcher.command(plan, output))}"


def _submit(launcher: Launcher, plan: Plan, text: str, output: Path | None) -> None:
    tool = launcher.command(plan, Path())[0]
    if shutil.which(tool) is None:
        raise UserError(f"{tool} is not installed here; --dry-run prints the file that it would be given.")
    with tempfile.TemporaryDirectory(prefix="nexa-launch-") as scratch:
        path = output or Path(scratch) / f"{plan.name}.{'sbatch' if launcher is SLURM else 'yaml'}"
        durable.write_text(path, text)
        done = subprocess.run(launcher.command(plan, path), check=False)
    if done.returncode != 0:
        raise UserError(f"{tool} did not take the job (exit code {done.returncode}); what it said stands above.")
