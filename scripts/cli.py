"""The command line: `nexa`, `python scripts/cli.py` and `python -m <package>.<verb>` are this one.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from nexa_core.command import run_to_exit
from nexa_core.errors import Stopped
from scripts import (
    data_commands,
    lab_commands,
    pairs_commands,
    result_commands,
    review_commands,
    run_commands,
    storage_commands,
    teacher_commands,
    training_commands,
)


class Commands(TyperGroup):
    """Passes Ctrl-C on as an error with words; the library would end the process without one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped from None


app = typer.Typer(
    cls=Commands,
    help="A machine-learning laboratory in a box: raw files in, a verified package out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for commands in (lab_commands, teacher_commands, review_commands, pairs_commands, training_commands, result_commands):
    app.add_typer(commands.app)
app.add_typer(data_commands.app, name="data")
app.add_typer(run_commands.app, name="runs")
app.add_typer(storage_commands.app)
app.add_typer(storage_commands.storage_app, name="storage")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line with these arguments, or the process's own, and exit."""
    run_to_exit(lambda: app(args=arguments, prog_name="nexa"))


if __name__ == "__main__":
    main()
