"""Making pairs to train on of a teacher's answers."""

from pathlib import Path
from typing import Annotated

import typer

from nexa_core.command import show
from scripts.options import Config, Json, Overrides, as_overrides

app = typer.Typer()


@app.command()
def filter_pairs(
    config: Config = Path("configs/distill.yaml"),
    override: Overrides = None,
    src: Annotated[
        list[str] | None, typer.Option(help="The answers: a dataset's key or a Parquet file. Repeatable.")
    ] = None,
    dst: Annotated[str | None, typer.Option(help="The pairs: a dataset's key, e.g. distilled_v2.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Look only at the first so many answers.", min=1)] = None,
    replace: Annotated[bool, typer.Option(help="Filter anew what was filtered with other settings.")] = False,
    as_json: Json = False,
) -> None:
    """Keep a teacher's good answers, and the reason of each that is rejected.

    Example: nexa filter-pairs --config configs/distill.yaml
    """
    from nexa_core.config import DistillConfig, load_config
    from nexa_core.paths import Layout
    from nexa_distill.filter_pairs import filter_pairs as filter_answers

    flags = as_overrides({"filter.outputs": src or None, "filter.max_samples": max_samples})
    settings = load_config(config, DistillConfig, overrides=[*(override or []), *flags])
    layout = Layout.from_environment()
    filtered = filter_answers(settings, layout, destination=dst, replace=replace)
    show(filtered.as_json(), filtered.as_text(layout), as_json)


@app.command()
def regenerate(
    config: Config = Path("configs/distill.yaml"),
    override: Overrides = None,
    src: Annotated[str | None, typer.Option(help="The filtered dataset's key. [default: the settings']")] = None,
    dst: Annotated[str | None, typer.Option(help="The new answers: a dataset's key or a Parquet file.")] = None,
    teacher: Annotated[str | None, typer.Option(help="openai:<model> or local:<checkpoint or folder>.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(help="What the new answers may cost.")] = None,
    replace: Annotated[bool, typer.Option(help="Replace answers and pairs that were made of something else.")] = False,
    as_json: Json = False,
) -> None:
    """Ask again for prompts of which no answer was kept, tell the teacher why, and filter old and new answers.

    Example: nexa regenerate --config configs/distill.yaml
    """
    from nexa_core.config import DistillConfig, load_config
    from nexa_core.paths import Layout
    from nexa_distill.regenerate import filter_again
    from nexa_distill.regenerate import regenerate as ask_again

    flags = as_overrides({"collect.teacher": teacher, "collect.max_cost_usd": max_cost_usd})
    settings = load_config(config, DistillConfig, overrides=[*(override or []), *flags])
    layout = Layout.from_environment()
    made = ask_again(settings, layout, source=src, destination=dst, replace=replace)
    filtered = filter_again(settings, layout, made.place, source=src, replace=replace)
    text = f"{made.as_text(layout)}\n{filtered.as_text(layout)}"
    show({"regenerated": made.as_json(), "filtered": filtered.as_json()}, text, as_json)
