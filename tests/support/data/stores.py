"""Fills data directories and databases for the commands that read them, and runs commands in this process."""

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from bonbon.errors import BonbonError
from bonbon.pairs.group_records import Comparison, Feedback, Group
from bonbon.pairs.pair_log import PairLog
from bonbon.store.database import open_database


def run(app: typer.Typer, *arguments: object, input: str | None = None, columns: int = 200) -> Result:
    """Returns the command's result on a terminal of this width; an exception it raised is in `exception`."""
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(app, [str(argument) for argument in arguments], input=input)


def refusal(app: typer.Typer, *arguments: object) -> str:
    """Returns the message of a UserError, which `bonbon` prints before it exits with status 2."""
    error = run(app, *arguments).exception
    assert isinstance(error, BonbonError), error
    return str(error)


def as_json(app: typer.Typer, *arguments: object) -> Any:
    """Returns what the command prints with --json."""
    result = run(app, *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def fill(url: str, groups: Iterable[Group], *, hung: bool = False) -> None:
    """Appends `groups`; with `hung`, adds a comparison and feedback to each."""

    async def append() -> None:
        now = datetime.now(UTC)
        async with open_database(url) as database:
            log = PairLog(database)
            await log.start()
            for group in groups:
                await log.append(group)
                if hung:
                    await log.append_comparison(Comparison(group.id, now, "v1", "tiny", "helpful", "1", 1.0, 0.0))
                    await log.append_feedback(Feedback(group.id, now, score=1.0))
            await log.stop()

    asyncio.run(append())


def sqlite(directory: Path) -> str:
    """Returns the URL of the default database in a data directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return f"sqlite+aiosqlite:///{directory / 'bonbon.db'}"
