"""Tests of the way back from a newer release: the copy before a migration, and refusals that name it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs

from bonbon.erase import erase
from bonbon.errors import UserError
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.reading.pair_stats import stats
from bonbon.store.database import Database, open_database
from bonbon.store.schema import known_revisions
from tests.store.test_migrations import fill


def stored(file: Path, query: str) -> list[object]:
    with closing(sqlite3.connect(file)) as connection:
        return [row[0] for row in connection.execute(query)]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Returns an SQLite database as the first release left it, with two groups of the user ada."""
    file = tmp_path / "bonbon.db"
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        fill(connection)
    engine.dispose()
    return file


async def opened(file: Path) -> int:
    async with open_database(f"sqlite+aiosqlite:///{file}") as database:
        return (await stats(database)).groups


async def test_a_migration_leaves_a_copy_of_before_and_names_it(old: Path) -> None:
    copy = old.with_name("bonbon.db.revision-0001")
    copy.write_text("left by an upgrade long ago")
    old.chmod(0o600)
    with capture_logs() as logs:
        assert await opened(old) == 2
    assert logs == [
        {
            "event": "migrating the database",
            "log_level": "warning",
            "revision": "0001",
            "to": known_revisions()[0],
            "backup": str(copy),
        }
    ]
    assert stored(copy, "SELECT version_num FROM alembic_version") == ["0001"]
    assert stored(copy, "SELECT count(*) FROM groups") == [2]
    assert copy.stat().st_mode == old.stat().st_mode
    # A database that is current is not copied.
    copy.unlink()
    assert await opened(old) == 2
    assert sorted(path.name for path in old.parent.glob("*revision*")) == []


async def test_a_new_database_is_not_copied(tmp_path: Path) -> None:
    assert await opened(tmp_path / "bonbon.db") == 0
    assert list(tmp_path.glob("*revision*")) == []


async def test_without_a_copy_nothing_is_migrated(old: Path) -> None:
    old.with_name("bonbon.db.revision-0001").mkdir()
    with pytest.raises(
        UserError, match=r"not migrated, because the copy before it, .*-0001, cannot be written: .*; free"
    ):
        await opened(old)
    assert stored(old, "SELECT version_num FROM alembic_version") == ["0001"]
    assert [path.name for path in old.parent.iterdir() if path.is_file()] == ["bonbon.db"]


async def test_a_refused_database_leads_back_to_the_copy(old: Path) -> None:
    newest = known_revisions()[0]
    assert await opened(old) == 2
    old.with_name("bonbon.db.revision-0001").rename(old.with_name(f"bonbon.db.revision-{newest}"))
    old.with_name("bonbon.db.revision-9998").touch()
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    copy = old.with_name(f"bonbon.db.revision-{newest}")
    with pytest.raises(UserError) as refusal:
        await opened(old)
    assert str(refusal.value) == (
        f"sqlite+aiosqlite:///{old} was made by a newer bonbon: its schema has revision 9999, and this release knows "
        f"revisions up to {newest}; upgrade bonbon, or stop every process that uses the database and put {copy} in the "
        f"place of {old} (docs/upgrading.md)"
    )
    for name in ("bonbon.db", "bonbon.db-wal", "bonbon.db-shm"):
        old.with_name(name).unlink(missing_ok=True)
    copy.rename(old)
    assert await opened(old) == 2


async def test_a_refusal_names_both_revisions_and_the_way_back(database: Database, database_url: str) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError) as refusal:
        await Database(database_url).start()
    message = str(refusal.value)
    assert f"revision 9999, and this release knows revisions up to {known_revisions()[0]}" in message
    way = "put the backup from before the upgrade" if "sqlite" in database_url else "pg_restore --exit-on-error"
    assert way in message


async def test_deletions_reach_the_copies(old: Path) -> None:
    assert await opened(old) == 2
    copy = old.with_name("bonbon.db.revision-0001")
    async with open_database(f"sqlite+aiosqlite:///{old}") as database:
        await erase(database, old.parent / "runs", Conditions(user="ada"), spool_dir=old.parent / "spool")
    for table in ("groups", "candidates", "comparisons", "feedback"):
        assert stored(copy, f"SELECT count(*) FROM {table}") == [0], table
    assert b"Where is my order?" not in copy.read_bytes()
