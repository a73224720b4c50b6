"""Options and helpers that the commands on the database share."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bonbon.settings import Settings, load_settings
from bonbon.store.database import Database, open_database

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory of the default database and the files.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database", help="SQLAlchemy URL of the pair log and registry.")]
WIDE = 110
"""Minimum terminal width, in columns, for a complete table. On a narrower terminal the less important columns are
omitted."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def store_settings(data_dir: Path | None, database: str | None) -> Settings:
    """Loads the settings, overridden by the options of the command."""
    return load_settings(data_dir=data_dir, database_url=database)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Database]:
    """Opens the database that the settings name.

    Raises:
        UserError: The database does not exist. A command does not create an empty one.
    """
    async with open_database(settings.database, create=False, timeouts=settings.database_timeouts) as database:
        yield database


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on standard output."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def console() -> Console:
    """Returns a console for tables.

    It is created on each call, so that it writes to the current standard output. It prints text unchanged, because
    names and paths may contain what rich would read as markup or as an emoji.
    """
    return Console(highlight=False, markup=False, emoji=False)


def table_of(out: Console, *titles: str, longest: int) -> Table:
    """Returns a table that truncates nothing: text that does not fit continues on the next line.

    The first column, which holds names that people copy, stays on one line if the terminal is wide enough.

    Args:
        longest: Number of characters in the longest name of the first column.
    """
    table = Table(*titles, box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = longest <= out.width // 2
    return table


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
