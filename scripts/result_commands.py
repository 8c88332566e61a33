"""What comes of a run: its scores, its verdict, its package, its place among others."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from nexa_core.command import show
from scripts.completion import complete_run
from scripts.options import CheckpointPath, Json, OptionalCheckpoint, OptionalConfig, Overrides, RunId, Tarball, Trust

app = typer.Typer()


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
def compare(
    checkpoint: CheckpointPath,
    other: Annotated[Path, typer.Option("--with", help="The checkpoint that it is to be better than.")],
    data: Annotated[
        str | None, typer.Option(help="The rows: a dataset's key. [default: the checkpoints' own dataset]")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What decides: accuracy or log_loss; final_answer, exact_match, loss or bits_per_byte of language models. "
            "[default: accuracy, or bits_per_byte]"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Not better where chance alone is likelier than this.", min=0, max=1)
    ] = 0.01,
    override: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints row by row on the same held-out rows; exit code 3 when the first is not better.

    Example: nexa compare --checkpoint artifacts/checkpoints/best.pt --with artifacts/checkpoints/checkpoint_epoch0.pt
    """
    from nexa_core.paths import Layout
    from nexa_eval.compare import compare as compare_checkpoints

    layout = Layout.from_environment()
    comparison = compare_checkpoints(
        checkpoint, other, layout=layout, dataset=data, overrides=override or [], metric=metric, alpha=alpha
    )
    show(comparison.as_json(), comparison.as_text(layout), as_json)
    comparison.require_better()


@app.command()
def export(
    checkpoint: CheckpointPath,
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = "float32",
    replace: Annotated[bool, typer.Option(help="Write over another model in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Write a language model as a folder that transformers reads, with the records of the run that made it.

    Example: nexa export --checkpoint artifacts/checkpoints/best.pt --output artifacts/models/python_docs
    """
    from nexa_core.paths import Layout
    from nexa_ops.export import export as export_model

    exported = export_model(checkpoint, output, layout=Layout.from_environment(), dtype=dtype, replace_files=replace)
    show(exported.as_json(), exported.as_text(), as_json)


@app.command()
def package(
    checkpoint: OptionalCheckpoint = None,
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
def reproduce(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's id, or a folder with its records, as nexa export writes it.", autocompletion=complete_run
        ),
    ],
    tolerance: Annotated[
        float, typer.Option(help="How far each score may be off, relative to the recorded one.", min=0)
    ] = 0.001,
    exact: Annotated[bool, typer.Option("--exact", help="Only results equal to the last bit will do.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the second run where it is equal, too.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Begin the second run again, whatever there is of it.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recorded run again and say how equal the two are; exit code 3 when they are not.

    Example: nexa reproduce baseline_20260102_030405
    """
    from nexa_core.paths import Layout
    from nexa_ops.reproduce.reproduce import reproduce as reproduce_run

    layout = Layout.from_environment()
    reproduction = reproduce_run(layout, run, tolerance=tolerance, keep=keep, anew=anew)
    show(reproduction.as_json(), reproduction.as_text(), as_json)
    reproduction.require_pass(exact=exact)


@app.command(name="track-sync")
def track_sync(
    run_id: RunId,
    to: Annotated[
        str | None,
        typer.Option(help="mlflow or wandb. [default: each that the shell, .env or the run's config asks for]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a run to MLflow and W&B: what they missed while it ran, or all of it; nothing twice.

    Example: nexa track-sync baseline_20260102_030405 --to mlflow
    """
    from nexa_core.paths import Layout
    from nexa_ops.track_sync import track_sync as sync_run

    result = sync_run(run_id, Layout.from_environment(), to=to)
    show(result.as_json(), result.as_text(), as_json)
