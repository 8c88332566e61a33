"""Asking a teacher."""

from pathlib import Path
from typing import Annotated

import typer

from nexa_core.command import show
from scripts.options import Json, Overrides

app = typer.Typer()


@app.command()
def collect_teacher(
    config: Annotated[Path, typer.Option("--config", help="YAML file of settings.")] = Path("configs/distill.yaml"),
    override: Overrides = None,
    src: Annotated[str | None, typer.Option(help="The prompts: a dataset's key or a Parquet file.")] = None,
    dst: Annotated[str | None, typer.Option(help="The answers: a dataset's key or a Parquet file.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="openai:<model>, local:<checkpoint or folder> or recorded:<file>.")
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="Ask only the first so many prompts.", min=1)] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(help="What all answers may cost; exit 3 when it is used up.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Collect anew what was collected with other settings.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a teacher for an answer to each prompt; each is paid for once, whatever happens.

    Example: nexa collect-teacher --config configs/distill.yaml --max-samples 100 --dry-run
    """
    from nexa_core.config import DistillConfig, load_config
    from nexa_core.paths import Layout
    from nexa_distill.collect_teacher import collect, estimate_collection

    given = {
        "inputs": src,
        "collect.teacher": teacher,
        "collect.max_samples": max_samples,
        "collect.max_cost_usd": max_cost_usd,
    }
    flags = [
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}"
        for key, value in given.items()
        if value is not None
    ]
    settings = load_config(config, DistillConfig, overrides=[*(override or []), *flags])
    layout = Layout.from_environment()
    if dry_run:
        expected = estimate_collection(settings, layout)
        show(expected.as_json(), expected.as_text(), as_json)
        return
    collected = collect(settings, layout, destination=dst, replace=replace)
    show(collected.as_json(), collected.as_text(layout), as_json)
