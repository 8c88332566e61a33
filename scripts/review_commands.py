"""Looking at a teacher's answers."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def review(
    dataset: Annotated[
        str, typer.Argument(help="A teacher's answers: a dataset's key or a Parquet file.")
    ] = "teacher_outputs_v1",
    filtered: Annotated[
        str | None,
        typer.Option(help="What a filter made of them: a dataset's key. [default: the newest]", metavar="KEY"),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page's address; 0 for a free one.", min=0, max=65535)] = 8008,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Accept, reject and edit a teacher's answers in the browser, with the keyboard; filter-pairs obeys.

    It is served to this machine alone, and each decision is on the disk before the page says so. Ctrl-C ends it.

    Example: nexa review teacher_outputs_v1 --port 8008 --no-open
    """
    from nexa_core.paths import Layout
    from nexa_distill.review.session import run

    run(Layout.from_environment(), dataset, filtered=filtered, port=port, open_page=open_page, say=typer.echo)
