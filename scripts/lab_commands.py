"""The laboratory itself: its data, its machine, its schemas."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from nexa_core.command import show
from nexa_core.errors import UserError
from scripts.options import Config, Json, OptionalConfig, Overrides

app = typer.Typer()


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
def schema(
    of: Annotated[
        str,
        typer.Argument(
            help="run (train, evaluate), data (prepare), distill (collect-teacher, filter-pairs), rubric (judge), "
            "policy (clean) or manifest."
        ),
    ],
) -> None:
    """Print the JSON schema of a config, for editors.

    Example: nexa schema run > run.schema.json
    """
    from nexa_eval.schemas import json_schema

    print(json.dumps(json_schema(of), indent=2))
