"""A data directory or database filled for the commands that read it, and the commands run in this process."""

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
    """The command's result on a terminal of that width; what it raised is in `exception`."""
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(app, [str(argument) for argument in arguments], input=input)


def refusal(app: typer.Typer, *arguments: object) -> str:
    """What a command that the user has to change says: `bonbon` prints it and exits with status 2."""
    error = run(app, *arguments).exception
    assert isinstance(error, BonbonError), error
    return str(error)


def as_json(app: typer.Typer, *arguments: object) -> Any:
    """What the command prints with --json."""
    result = run(app, *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def fill(url: str, groups: Iterable[Group], *, hung: bool = False) -> None:
    """Append `groups`; with `hung`, a comparison and feedback on each."""

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
    """The URL of the default database in a data directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return f"sqlite+aiosqlite:///{directory / 'bonbon.db'}"
