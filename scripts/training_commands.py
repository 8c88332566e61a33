"""Training a model, here or on a cluster, and what it would take."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nexa_core.command import show
from scripts.completion import complete_checkpoint
from scripts.options import Config, Json, Overrides

if TYPE_CHECKING:
    from nexa_core.config import RunConfig

app = typer.Typer()

Resume = Annotated[bool, typer.Option(help="Continue the newest unfinished run of this config.")]
ResumeFrom = Annotated[
    Path | None, typer.Option(help="Begin a new run at this checkpoint.", autocompletion=complete_checkpoint)
]


@app.command()
def train(
    config: Config = Path("configs/default.yaml"),
    override: Overrides = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    as_json: Json = False,
) -> None:
    """Train a model and score it on the test split.

    Example: nexa train --config configs/default.yaml --override training.optimizer.lr=0.0001
    """
    from nexa_core.config import RunConfig, load_config

    _run(load_config(config, RunConfig, overrides=override or []), config, resume, resume_from, as_json)


@app.command()
def distill(
    config: Config = Path("nexa_train/configs/baseline.yaml"),
    override: Overrides = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    as_json: Json = False,
) -> None:
    """Train a student of a teacher: on its answers, or also on the probabilities behind them.

    Example: nexa distill --config nexa_train/configs/baseline.yaml --override distillation.loss.temperature=2
    """
    from nexa_core.config import RunConfig, load_config
    from nexa_train.distill import require_teacher

    settings = load_config(config, RunConfig, overrides=override or [])
    require_teacher(settings)
    _run(settings, config, resume, resume_from, as_json)


def _run(settings: "RunConfig", config_path: Path, resume: bool, resume_from: Path | None, as_json: bool) -> None:
    from nexa_core.paths import Layout
    from nexa_train.distributed.world import read_world
    from nexa_train.train import run

    layout = Layout.from_environment()
    result = run(settings, layout=layout, config_path=config_path, resume=resume, resume_from=resume_from)
    if read_world(os.environ).is_main:
        show(result.manifest, result.as_text(layout), as_json)


@app.command()
def preflight(
    config: Config = Path("configs/default.yaml"),
    override: Overrides = None,
    nodes: Annotated[int, typer.Option(help="Number of nodes.", min=1)] = 1,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(help="GPUs of each node, a process for each. [default: as training.device says]", min=0),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="The GPU's name, e.g. H100, to tell the time by.")] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB of each GPU, or of a node without. [default: this machine's]", min=0)
    ] = None,
    host_memory: Annotated[
        float | None, typer.Option(help="GiB of a node with GPUs, beside theirs. [default: this machine's]", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run would be, without training: data, masks, memory, disk, time, cost; exit code 3 when it can't work.

    Example: nexa preflight --config configs/default.yaml
    """
    from nexa_core.config import RunConfig, load_config
    from nexa_core.paths import Layout
    from nexa_ops.preflight import examine

    settings = load_config(config, RunConfig, overrides=override or [])
    report = examine(
        settings,
        Layout.from_environment(),
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu=gpu,
        memory_gib=memory,
        host_memory_gib=host_memory,
    )
    show(report.as_json(), report.as_text(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ), as_json)
    report.require_pass()


@app.command()
def launch(
    to: Annotated[str, typer.Option(help="slurm, k8s (Kubeflow Trainer) or sky (SkyPilot).")],
    config: Config = Path("configs/default.yaml"),
    override: Overrides = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            help="GPUs of each node, a process for each; 0 for CPUs only. "
            "[default: a GPU for each process where training.device is cuda, else 0]",
            min=0,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Number of nodes.", min=1)] = 1,
    cpus_per_node: Annotated[
        int | None, typer.Option(help="Processor cores of each node. [default: 8 for each GPU]", min=1)
    ] = None,
    gpu_type: Annotated[str | None, typer.Option(help="The GPU's name, e.g. H100 (slurm, sky).")] = None,
    time: Annotated[str | None, typer.Option(help="Longest time, e.g. 24:00:00 or 2-00:00:00 (slurm, k8s).")] = None,
    image: Annotated[
        str | None, typer.Option(help="Container image (k8s, sky). [default for k8s: nexacompute and its version]")
    ] = None,
    volume: Annotated[
        str | None, typer.Option(help="Volume that holds the laboratory (k8s, sky). [default for k8s: nexa-lab]")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the scheduler's file here.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make the scheduler's file and submit nothing.")] = False,
) -> None:
    """Train on a cluster or cloud: hand the run to its scheduler.

    Example: nexa launch --to slurm --config configs/baseline.yaml --nodes 2 --gpus-per-node 8 --dry-run
    """
    from nexa_ops.launch import launch as launch_run
    from nexa_ops.launchers.plan import Options

    said = launch_run(
        to,
        config_path=config,
        overrides=override or [],
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        options=Options(gpu_type=gpu_type, time=time, image=image, volume=volume),
        output=output,
        dry_run=dry_run,
    )
    print(said)


@app.command()
def consolidate(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint_*.sharded folder.")],
    output: Annotated[Path | None, typer.Option(help="The file to write. [default: beside the folder]")] = None,
) -> None:
    """Make one checkpoint file of a sharded checkpoint, without a GPU or other processes.

    Example: nexa consolidate --checkpoint artifacts/runs/base/base_20260102_030405/checkpoints/last.sharded
    """
    from nexa_models.sharded import consolidate as make_one_file

    print(make_one_file(checkpoint, output))


@app.command()
def tune(
    config: Config = Path("configs/default.yaml"),
    max_trials: Annotated[
        int, typer.Option(help="Trials that the study shall have, earlier ones included.", min=1)
    ] = 5,
    override: Overrides = None,
    workers: Annotated[int, typer.Option(help="Processes that train trials on this machine.", min=1)] = 1,
    trial: Annotated[
        int | None,
        typer.Option(help="Train only this trial, by itself; exit code 3 when it is not what the study has.", min=0),
    ] = None,
    fail: Annotated[
        int | None,
        typer.Option(help="Record this unfinished trial as failed: it ends its workers before they can.", min=0),
    ] = None,
    as_json: Json = False,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Search for better settings: random ones around the learning rate and dropout, or as the config's `tune:` says.

    The same command goes on with a study that was interrupted, and on other nodes it joins in.

    Example: nexa tune --config configs/default.yaml --max-trials 5
    """
    from nexa_core.paths import Layout
    from nexa_train.tune.again import train_again
    from nexa_train.tune.page import write_page
    from nexa_train.tune.presence import ended_when_told, taking_part
    from nexa_train.tune.report import Report
    from nexa_train.tune.search import Search
    from nexa_train.tune.workers import end_with_parent, work_together
    from scripts.hyperparameter_search import TABLES

    layout = Layout.from_environment()
    search = Search(config, layout, tables=TABLES, overrides=override or [], workers=workers)
    if worker:
        with ended_when_told():
            end_with_parent()
            search.work(max_trials)
        return
    if fail is not None:
        search.fail(fail)
        print(f"trial {fail} has failed; the search goes on without it: the same command without --fail")
        return
    if trial is not None:
        again = train_again(search, trial)
        show(again.as_json(), again.as_text(), as_json)
        again.require_same()
        return
    with taking_part(search.folder):
        if workers == 1:
            with ended_when_told():
                search.work(max_trials)
        else:
            command = [sys.executable, "-m", "scripts.cli", "tune", "--worker", "--config", str(config)]
            command += [f"--max-trials={max_trials}", *(f"--override={each}" for each in override or [])]
            work_together(search, command, num_workers=workers, max_trials=max_trials)
    report = Report.of(search)
    write_page(report, report.page)
    show(report.as_json(), report.as_text(), as_json)
