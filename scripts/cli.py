"""The command line: `nexa`, `python scripts/cli.py` and `python -m <package>.<verb>` are this one.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nexa_core.command import run_to_exit, show
from nexa_core.errors import UserError
from scripts import data_commands

app = typer.Typer(
    help="A machine-learning laboratory in a box: raw files in, a verified package out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(data_commands.app, name="data")

Config = Annotated[Path, typer.Option("--config", help="YAML file of settings.")]
OptionalConfig = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override", help="Change one setting, e.g. training.optimizer.lr=0.0001. Repeatable.", metavar="KEY=VALUE"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CheckpointPath = Annotated[Path, typer.Option("--checkpoint", help="A checkpoint_*.pt file.")]
Tarball = Annotated[Path, typer.Argument(help="A package made by `nexa package`.")]
Trust = Annotated[
    str | None, typer.Option(help="Import and run this model code of the package's maker.", metavar="MODULE:NAME")
]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line with these arguments, or the process's own, and exit."""
    run_to_exit(lambda: app(args=arguments, prog_name="nexa"))


@app.command()
def prepare(
    config: Config = Path("configs/data.yaml"),
    override: Overrides = None,
    replace: Annotated[bool, typer.Option(help="Make datasets anew whose version exists with other content.")] = False,
    as_json: Json = False,
) -> None:
    """Turn raw files into versioned datasets.

    Example: nexa prepare --config configs/data.yaml
    """
    from nexa_core.config import DataConfig, load_config
    from nexa_core.paths import Layout
    from nexa_data.prepare import prepare as prepare_datasets

    settings = load_config(config, DataConfig, overrides=override or [])
    prepared = prepare_datasets(settings, Layout.from_environment(), replace=replace)
    lines = [
        f"{each.key}: {', '.join(f'{split} {rows:,}' for split, rows in each.num_rows.items())} rows, "
        f"{each.num_rejected:,} rejected{'' if each.is_new else ', unchanged'}; manifest {each.manifest_path}"
        for each in prepared
    ]
    show([dict(each.manifest) for each in prepared], "\n".join(lines), as_json)


@app.command()
def train(
    config: Config = Path("configs/default.yaml"),
    override: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the newest unfinished run of this config.")] = False,
    resume_from: Annotated[Path | None, typer.Option(help="Begin a new run at this checkpoint.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model and score it on the test split.

    Example: nexa train --config configs/default.yaml --override training.optimizer.lr=0.0001
    """
    from nexa_core.config import RunConfig, load_config
    from nexa_core.paths import Layout
    from nexa_train.distributed.world import read_world
    from nexa_train.train import run

    settings = load_config(config, RunConfig, overrides=override or [])
    layout = Layout.from_environment()
    result = run(settings, layout=layout, config_path=config, resume=resume, resume_from=resume_from)
    if read_world(os.environ).is_main:
        show(result.manifest, result.as_text(layout), as_json)


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    config: OptionalConfig = None,
    override: Overrides = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint: every metric with its 95% interval.

    Example: nexa evaluate --config configs/default.yaml --checkpoint artifacts/checkpoints/checkpoint_epoch0.pt
    """
    from nexa_core.paths import Layout
    from nexa_eval.evaluate import evaluate as evaluate_checkpoint

    layout = Layout.from_environment()
    result = evaluate_checkpoint(checkpoint, layout=layout, config_path=config, overrides=override or [])
    show(result.metrics, result.as_text(layout), as_json)


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
def judge(
    checkpoint: CheckpointPath,
    config: OptionalConfig = None,
    override: Overrides = None,
    rubric: Annotated[str | None, typer.Option(help="A rubric's name, or a YAML file.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint and hold it against a rubric; exit code 3 when a gate fails.

    Example: nexa judge --checkpoint artifacts/checkpoints/best.pt
    """
    from nexa_core.paths import Layout
    from nexa_eval.judge import judge as judge_checkpoint

    layout = Layout.from_environment()
    verdict = judge_checkpoint(checkpoint, layout=layout, config_path=config, overrides=override or [], rubric=rubric)
    show(verdict.as_json(), verdict.as_text(layout), as_json)
    verdict.require_pass()


@app.command()
def package(
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint_*.pt file.")] = None,
    config: OptionalConfig = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the tarball. [default: artifacts/package]")] = None,
    verification_rows: Annotated[
        int, typer.Option(help="Rows of the test split that travel along as proof.", min=1)
    ] = 256,
    as_json: Json = False,
) -> None:
    """Pack a checkpoint (or the newest run of a config) into one verified tarball.

    Example: nexa package --checkpoint artifacts/checkpoints/best.pt
    """
    from nexa_core.paths import Layout
    from nexa_ops.package import package as package_checkpoint

    packed = package_checkpoint(
        layout=Layout.from_environment(),
        checkpoint_path=checkpoint,
        config_path=config,
        output=output,
        verification_rows=verification_rows,
    )
    show(packed.as_json(), packed.as_text(), as_json)


@app.command()
def verify(tarball: Tarball, trust: Trust = None, as_json: Json = False) -> None:
    """Check a package in a fresh process: digests, weights, predictions and score; exit code 3 when one differs.

    Example: nexa verify artifacts/package/digits_20260102_030405.tar.gz
    """
    from nexa_ops.verify import verify as verify_package

    report = verify_package(tarball, trusted=trust)
    show(report.as_json(), report.as_text(), as_json)
    report.require_pass()


@app.command()
def predict(
    tarball: Tarball,
    input_path: Annotated[Path, typer.Option("--input", help="Rows to predict, one JSON object a line.")],
    output: Annotated[Path | None, typer.Option(help="Write JSON lines here instead of stdout.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest text a language model writes.", min=1)] = 32,
    trust: Trust = None,
) -> None:
    """Predict rows with a packed model.

    Example: nexa predict artifacts/package/digits_20260102_030405.tar.gz --input rows.jsonl
    """
    from nexa_ops.predict import predict_file

    predict_file(
        tarball, input_path, output_path=output, stdout=sys.stdout, max_new_tokens=max_new_tokens, trusted=trust
    )


@app.command()
def leaderboard(
    experiment: Annotated[str | None, typer.Option(help="Only runs of this experiment.")] = None,
    metric: Annotated[str | None, typer.Option(help="Rank by this metric instead of the main one.")] = None,
    as_json: Json = False,
) -> None:
    """Rank the finished runs, each score with its interval, by dataset.

    Example: nexa leaderboard --metric macro_f1
    """
    from nexa_core.paths import Layout
    from nexa_ops.leaderboard import make_leaderboard

    board = make_leaderboard(Layout.from_environment(), experiment=experiment, metric=metric)
    show(board.as_json(), board.as_text(), as_json)


@app.command()
def doctor(
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Examine all processes that a launcher such as torchrun started.")
    ] = False,
    config: OptionalConfig = None,
    override: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, visible and writable here; exit code 3 when something needed is not.

    With --distributed, say whether nodes are fit to train together (as --config would); exit code 4 when one is not.

    Example: nexa doctor
    """
    from nexa_core.paths import Layout

    layout = Layout.from_environment()
    if distributed:
        from nexa_ops.doctor_distributed import examine_together

        health = examine_together(layout, config_path=config, overrides=override or [], environment=os.environ)
        if health.nodes:  # one process speaks for all
            show(health.as_json(), health.as_text(), as_json)
        health.require_pass()
        return
    if config or override:
        raise UserError("`nexa doctor` looks at this machine alone; --config and --override go with --distributed.")
    from nexa_ops.doctor import examine

    report = examine(layout)
    show(report.as_json(), report.as_text(), as_json)
    report.require_pass()


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
def sync(
    source: Annotated[str, typer.Argument(help="s3://bucket/prefix, file:///folder or a folder.")],
    destination: Annotated[str, typer.Argument(help="Likewise.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="After all was copied, delete what the source lacks.")
    ] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="Only such files, e.g. '*.csv'. Repeatable.", metavar="GLOB")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No such files; it wins over --include. Repeatable.", metavar="GLOB")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of an S3-compatible storage. [default: AWS_ENDPOINT_URL, or AWS]")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(help="Files at once; of large ones half as many parts.", min=1, max=128)
    ] = 32,
    as_json: Json = False,
) -> None:
    """Pull or push files; they are compared by size and sha256, and none is ever there in part.

    Example: nexa sync s3://bucket/raw data/raw --dry-run
    """
    from nexa_core.storage.sync import sync as sync_places

    synced = sync_places(
        source,
        destination,
        include=include or [],
        exclude=exclude or [],
        delete=delete,
        dry_run=dry_run,
        endpoint=endpoint,
        concurrency=concurrency,
    )
    show(synced.as_json(), synced.as_text(), as_json)


@app.command()
def schema(
    of: Annotated[str, typer.Argument(help="run (train, evaluate), data (prepare), rubric (judge) or manifest.")],
) -> None:
    """Print the JSON schema of a config, for editors.

    Example: nexa schema run > run.schema.json
    """
    from nexa_eval.schemas import json_schema

    print(json.dumps(json_schema(of), indent=2))


@app.command()
def tune(
    config: Config = Path("configs/default.yaml"),
    max_trials: Annotated[int, typer.Option(help="Number of trials.")] = 5,
) -> None:
    """Not in this version: search for better hyperparameters."""
    from scripts.hyperparameter_search import search

    search(config, max_trials=max_trials)


if __name__ == "__main__":
    main()
