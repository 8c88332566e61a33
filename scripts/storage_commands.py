"""Disk space: what may go, what lies where, and moving it between tiers."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from nexa_core.command import show
from scripts.completion import complete_config, complete_run, complete_tier
from scripts.options import Json, Overrides

app = typer.Typer()
storage_app = typer.Typer(rich_markup_mode=None)


@app.command()
def clean(
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of retention rules. [default: POLICY.md's]",
            autocompletion=complete_config,
            show_default=False,
        ),
    ] = None,
    override: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what the plan says; without it nothing is.")] = False,
    as_json: Json = False,
) -> None:
    """Plan what may be deleted by POLICY.md's rules, and delete it with --yes.

    Never: of any run the two newest checkpoints that are whole, the best, the result, what is packaged, pinned or a parent.

    Example: nexa clean --override checkpoints.after_days=2
    """
    from nexa_core.config.policy import load_policy
    from nexa_core.paths import Layout
    from nexa_ops.retention.clean import clean as clean_up
    from nexa_ops.retention.plan import make_plan

    layout = Layout.from_environment()
    policy = load_policy(config, overrides=override or [])
    plan = make_plan(layout, policy, now=datetime.now(UTC))
    if not yes:
        done = (
            "nothing was deleted; nexa clean --yes does it"
            if plan.items
            else "there is nothing to delete by these rules"
        )
        show(plan.as_json(), f"{plan.as_text()}\n{done}", as_json)
        return
    cleaned = clean_up(layout, plan, now=lambda: datetime.now(UTC))
    show(cleaned.as_json(), f"{plan.as_text()}\n{cleaned.as_text()}", as_json)


@storage_app.callback(invoke_without_command=True)
def storage(context: typer.Context, as_json: Json = False) -> None:
    """Say how much lies in each storage tier, and move between them.

    Example: nexa storage
    """
    if context.invoked_subcommand is None:
        from nexa_core.paths import Layout
        from nexa_ops.tiers.usage import measure

        measured = measure(Layout.from_environment(), os.environ)
        show(measured.as_json(), measured.as_text(), as_json)


@storage_app.command()
def move(
    what: Annotated[
        str,
        typer.Argument(
            help="A run's id, or a path such as artifacts/package/x.tar.gz or data/raw/x.", autocompletion=complete_run
        ),
    ],
    to: Annotated[
        str, typer.Option(help="scratch, durable, shared; or lab, to bring it back.", autocompletion=complete_tier)
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Copy: the original stays.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be moved and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Move a run or a path to a tier; the copy is read again and its digests hold before the original goes.

    Example: nexa storage move digits_20260102_030405 --to durable
    """
    from nexa_core.paths import Layout
    from nexa_ops.tiers.move import move as move_part

    moved = move_part(
        Layout.from_environment(),
        what,
        to,
        environment=os.environ,
        now=lambda: datetime.now(UTC),
        keep=keep,
        dry_run=dry_run,
    )
    show(moved.as_json(), moved.as_text(), as_json)
