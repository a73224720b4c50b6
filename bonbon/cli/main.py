"""The `bonbon` command."""

import logging
import sys
from importlib.metadata import entry_points

import typer
from rich.console import Console
from rich.text import Text

from bonbon import __version__
from bonbon.errors import BonbonError
from bonbon.observability.logs import configure_logs
from bonbon.observability.tracebacks import format_traceback

app = typer.Typer(
    name="bonbon",
    help="Best-of-n answers now, the same quality from one draw after training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` prints what nobody expected, and shows no values
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"bonbon {__version__}")
        raise typer.Exit


def add_commands() -> None:
    """Give `app` the commands of every installed part."""
    for entry in sorted(entry_points(group="bonbon.commands"), key=lambda entry: entry.name):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)


def main() -> None:
    """Run the command line; what the user can mend is printed as one line, with exit status 2."""
    configure_logs(libraries=logging.WARNING)
    add_commands()
    try:
        app()
    except BonbonError as error:
        message = Text.assemble(("error:", "bold red"), f" {error}")  # never markup: it quotes what the user wrote
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except Exception as error:  # noqa: BLE001 - the last one that can say so
        print(format_traceback(error), file=sys.stderr)
        sys.exit(1)
