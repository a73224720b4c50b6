"""The entry point of the `bonbon` command."""

import logging
import sys
from importlib.metadata import entry_points

import structlog
import typer
from rich.console import Console
from rich.text import Text

from bonbon import __version__
from bonbon.errors import BonbonError
from bonbon.observability.logs import configure_logs, writes_json
from bonbon.observability.tracebacks import format_traceback

log = structlog.get_logger(__name__)

app = typer.Typer(
    name="bonbon",
    help="Serve best-of-n answers, and distil them into a model that needs fewer candidates for the same quality.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` prints unexpected exceptions without the values of variables
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"bonbon {__version__}")
        raise typer.Exit


def add_commands() -> None:
    """Adds the commands of every installed package to `app`."""
    for entry in sorted(entry_points(group="bonbon.commands"), key=lambda entry: entry.name):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)


def main() -> None:
    """Runs the command line.

    An error that the user can correct is printed as one line, and the process exits with status 2. Any other exception
    is printed with its traceback, and the status is 1.
    """
    configure_logs(libraries=logging.WARNING)
    add_commands()
    try:
        app()
    except BonbonError as error:
        if writes_json():
            log.error(str(error))
            sys.exit(2)
        message = Text.assemble(("error:", "bold red"), f" {error}")  # no markup: the message quotes user input
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        if writes_json():
            log.error("unexpected failure", exc_info=error)
            sys.exit(1)
        print(format_traceback(error), file=sys.stderr)
        sys.exit(1)
