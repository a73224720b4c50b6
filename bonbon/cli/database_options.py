"""What the commands on the database share: their options, and opening it."""

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

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the default database and the files live.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database", help="SQLAlchemy URL of the pair log and registry.")]
WIDE = 110
"""Columns from which on a terminal has room for a whole list; on a narrower one it lacks the less important columns."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def store_settings(data_dir: Path | None, database: str | None) -> Settings:
    """The settings, with what the command line names in their place."""
    return load_settings(data_dir=data_dir, database_url=database)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Database]:
    """The database that the settings name. Raises UserError when it is not there: a command makes no empty one."""
    async with open_database(settings.database, create=False, timeouts=settings.database_timeouts) as database:
        yield database


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def console() -> Console:
    """Where tables go; made when it is needed, so that it writes to the standard output of that moment.

    It prints text as it is: names and paths may hold what rich would read as markup or as an emoji.
    """
    return Console(highlight=False, markup=False, emoji=False)


def table_of(out: Console, *titles: str, longest: int) -> Table:
    """A table that cuts nothing off: what has no room goes on in the next line.

    The first column, which has names that people copy, is kept in one line where the terminal has room for it.

    Args:
        longest: characters of the longest name in the first column.
    """
    table = Table(*titles, box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = longest <= out.width // 2
    return table


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
