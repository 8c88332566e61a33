"""`nexa data`: looking at prepared datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nexa_core.command import show

if TYPE_CHECKING:
    from nexa_data.datasets import Dataset

app = typer.Typer(
    help="Look at prepared datasets: what is in them, what each step left out, how versions differ, whether they are sound.\n\n"
    "Example: nexa data funnel news_v1",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Key = Annotated[str, typer.Argument(help="A dataset and its version, e.g. news_v1.", metavar="DATASET")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def funnel(
    dataset: Key,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override", help="Try another limit, e.g. quality.0.min_words=5. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    examples: Annotated[int, typer.Option(help="Rows to show of each quality step.", min=0)] = 2,
    as_json: Json = False,
) -> None:
    """Show what each step of a dataset left out, or would with other limits; nothing is read or measured anew.

    Example: nexa data funnel news_v1 --override quality.0.min_words=5
    """
    from nexa_data.funnel import show_funnel

    found = show_funnel(_open(dataset), overrides=override or [], num_examples=examples)
    show(found.as_json(), found.as_text(), as_json)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A dataset and its version, e.g. news_v1.")],
    new: Annotated[str, typer.Argument(help="Another, e.g. news_v2.")],
    as_json: Json = False,
) -> None:
    """Show which rows two versions of a dataset have in common and which only one of them has.

    Example: nexa data diff news_v1 news_v2
    """
    from nexa_data.difference import compare

    found = compare(_open(old), _open(new))
    show(found.as_json(), found.as_text(), as_json)


@app.command()
def overview(
    dataset: Key,
    output: Annotated[Path | None, typer.Option(help="The file to write. [default: beside the dataset]")] = None,
) -> None:
    """Make a page of what is in a dataset, with plots and rows; all of its rows are measured. Needs no server to be looked at.

    Example: nexa data overview news_v1
    """
    from nexa_data.overview.page import write_overview

    chosen = _open(dataset)
    chosen.require_whole()
    print(write_overview(chosen, output))


@app.command()
def validate(
    datasets: Annotated[list[str] | None, typer.Argument(help="Datasets with their versions; all without it.")] = None,
    as_json: Json = False,
) -> None:
    """Hold datasets against their manifests: files, schema, ids, and leaks between splits. Exit code 3 when one is not sound.

    Example: nexa data validate news_v1
    """
    from nexa_core.errors import GateError, UserError
    from nexa_core.paths import Layout
    from nexa_data.datasets import list_datasets
    from nexa_data.validation import validate as validate_dataset

    chosen = [_open(key) for key in datasets] if datasets else list_datasets(Layout.from_environment())
    if not chosen:
        raise UserError("There are no datasets yet; make them with: nexa prepare --config configs/data.yaml")
    found = [validate_dataset(dataset) for dataset in chosen]
    show([each.as_json() for each in found], "\n".join(each.as_text() for each in found), as_json)
    if failed := [each.dataset for each in found if not each.holds]:
        raise GateError(f"not sound: {', '.join(failed)}")


def _open(key: str) -> "Dataset":
    """The dataset called ``<name>_<version>``, of whichever category."""
    from nexa_core.paths import Layout
    from nexa_data.datasets import find_dataset

    return find_dataset(Layout.from_environment(), key)
