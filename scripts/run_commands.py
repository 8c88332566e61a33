"""The runs that there are: listing, following, stopping, going on, pinning."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from nexa_core.command import show as show_result
from nexa_core.errors import UserError
from scripts.completion import complete_experiment, complete_state
from scripts.options import Json, Overrides, RunId

app = typer.Typer(rich_markup_mode=None)

States = Annotated[
    list[str] | None,
    typer.Option(
        help="running, finished, interrupted, failed, pruned or partial. Repeatable.",
        metavar="STATE",
        autocompletion=complete_state,
    ),
]
Experiment = Annotated[str | None, typer.Option(help="Of this experiment.", autocompletion=complete_experiment)]
Since = Annotated[str | None, typer.Option(help="Begun since then: 90m, 12h, 7d, 2w, or 2026-01-31.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Finished with such a score, e.g. 'accuracy>0.9'. Repeatable.", metavar="CONDITION"),
]
Limit = Annotated[int, typer.Option(help="How many at most, the newest; 0 for all.", min=0)]


@app.callback(
    invoke_without_command=True,
    help="List the runs, or look at one, follow, stop, resume or pin it.\n\nExample: nexa runs --state running",
)
@app.command(name="list")
def list_runs(
    context: typer.Context,
    state: States = None,
    experiment: Experiment = None,
    since: Since = None,
    where: Where = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List the runs, the newest first.

    Example: nexa runs list --since 7d --where 'accuracy>0.9'
    """
    if context.invoked_subcommand is not None:  # of the group, which lists only where no command is named
        _require_no_options(context)
        return
    from nexa_core.paths import Layout
    from nexa_ops.runs.table import Filters, list_rows, parse_since

    now = datetime.now(UTC)
    begun_since = None if since is None else parse_since(since, now=now)
    filters = Filters(tuple(state or ()), experiment, begun_since, tuple(where or ()))
    table = list_rows(Layout.from_environment(), filters, limit=limit)
    show_result(table.as_json(), table.as_text(now=now), as_json)


@app.command()
def show(run_id: RunId, as_json: Json = False) -> None:
    """Say all there is to say of a run: what it is made from, how far it is, what it left, what can be done next.

    Example: nexa runs show digits_20260102_030405
    """
    from nexa_core.paths import Layout
    from nexa_ops.runs.show import show_run
    from nexa_ops.runs.states import find_run

    layout = Layout.from_environment()
    shown = show_run(layout, find_run(layout, run_id))
    show_result(shown.as_json(), shown.as_text(now=datetime.now(UTC)), as_json)


@app.command()
def tail(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines to begin with.", min=0)] = 20,
) -> None:
    """Print the end of a run's log; with -f what is added, until the run ends.

    Example: nexa runs tail -f digits_20260102_030405
    """
    from nexa_core.paths import Layout
    from nexa_ops.runs.follow import standing_text
    from nexa_ops.runs.follow import tail as tail_run
    from nexa_ops.runs.states import find_run

    layout = Layout.from_environment()
    found = find_run(layout, run_id)
    standing = tail_run(layout, found, count=lines, follow=follow, say=lambda line: print(line, flush=True))
    print(standing_text(found, standing), file=sys.stderr)


@app.command()
def stop(
    run_id: RunId,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for the step: it is lost, and nothing before.")
    ] = False,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for the end.", min=0)] = 600,
    as_json: Json = False,
) -> None:
    """Have a run finish its step, save and end; wait for it. Of a search's trial, or by a study's name: the whole search.

    Example: nexa runs stop digits_20260102_030405
    """
    from nexa_core.paths import Layout
    from nexa_ops.runs.control import stop as stop_run
    from nexa_ops.runs.searches import is_study, stop_search
    from nexa_ops.runs.states import find_run

    layout = Layout.from_environment()
    if is_study(layout, run_id):
        stopped = stop_search(layout, run_id, now=now, wait_seconds=wait_seconds)
        show_result(stopped.as_json(), stopped.as_text(), as_json)
        return
    ended = stop_run(layout, find_run(layout, run_id), now=now, wait_seconds=wait_seconds)
    show_result(ended.as_json(), ended.as_text(), as_json)


@app.command()
def resume(run_id: RunId, override: Overrides = None, as_json: Json = False) -> None:
    """Go on with a run by its own config, to its end.

    Example: nexa runs resume digits_20260102_030405
    """
    from nexa_core.paths import Layout
    from nexa_ops.runs.control import resume as resume_run
    from nexa_ops.runs.states import find_run

    layout = Layout.from_environment()
    result = resume_run(layout, find_run(layout, run_id), override or [])
    show_result(result.manifest, result.as_text(layout), as_json)


@app.command()
def pin(
    run_id: RunId, why: Annotated[str, typer.Option(help="For who finds it pinned.")] = "", as_json: Json = False
) -> None:
    """Keep all of a run's checkpoints, whatever `nexa clean` would do.

    Example: nexa runs pin digits_20260102_030405 --why "the paper's table 2"
    """
    from nexa_core.paths import Layout
    from nexa_ops.runs.pins import pin as pin_run
    from nexa_ops.runs.states import find_run

    layout = Layout.from_environment()
    found = find_run(layout, run_id)
    pin_run(layout, found.run_id, why=why, now=datetime.now(UTC))
    show_result({"run_id": found.run_id, "pinned": True}, f"run {found.run_id} is pinned", as_json)


@app.command()
def unpin(run_id: RunId, as_json: Json = False) -> None:
    """Let `nexa clean` treat a run as any other again.

    Example: nexa runs unpin digits_20260102_030405
    """
    from nexa_core.paths import Layout
    from nexa_ops.runs.pins import unpin as unpin_run
    from nexa_ops.runs.states import find_run

    layout = Layout.from_environment()
    found = find_run(layout, run_id)
    was = "" if unpin_run(layout, found.run_id) else "; it was not"
    show_result({"run_id": found.run_id, "pinned": False}, f"run {found.run_id} is not pinned{was}", as_json)


def _require_no_options(context: typer.Context) -> None:
    """Raises UserError for options of the listing in front of another command, which would ignore them."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and (source := context.get_parameter_source(parameter.name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise UserError(
            f"{', '.join(given)} belongs to nexa runs list, and nexa runs {context.invoked_subcommand} would ignore it: "
            f"give options behind the command, as nexa runs {context.invoked_subcommand} --help names them."
        )
