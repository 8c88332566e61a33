"""Options that several commands have."""

import json
from pathlib import Path
from typing import Annotated

import typer

from scripts.completion import complete_checkpoint, complete_config, complete_run

Config = Annotated[Path, typer.Option("--config", help="YAML file of settings.", autocompletion=complete_config)]
OptionalConfig = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings.", autocompletion=complete_config)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override", help="Change one setting, e.g. training.optimizer.lr=0.0001. Repeatable.", metavar="KEY=VALUE"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CheckpointPath = Annotated[
    Path, typer.Option("--checkpoint", help="A checkpoint_*.pt file.", autocompletion=complete_checkpoint)
]
OptionalCheckpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="A checkpoint_*.pt file.", autocompletion=complete_checkpoint)
]
RunId = Annotated[
    str, typer.Argument(help="A run's id, or as much of its beginning as is clear.", autocompletion=complete_run)
]
Tarball = Annotated[Path, typer.Argument(help="A package made by `nexa package`.")]
Trust = Annotated[
    str | None, typer.Option(help="Import and run this model code of the package's maker.", metavar="MODULE:NAME")
]


def as_overrides(given: dict[str, object]) -> list[str]:
    """Options as overrides of the settings that they stand for; those that were not given are none."""
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
