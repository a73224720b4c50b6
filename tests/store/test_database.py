"""Tests of the database on SQLite and PostgreSQL: schema, transactions and cancelled callers."""

import asyncio
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select

from bonbon.concurrency.shielded import shielded
from bonbon.errors import StoreError, UserError
from bonbon.store.database import Database, open_database
from bonbon.store.tables import aliases, metadata


async def test_the_migrations_make_exactly_the_tables(database: Database) -> None:
    def differences(connection: Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, metadata)

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_starting_again_finds_everything(database: Database, database_url: str) -> None:
    async with database.write() as connection:
        await connection.execute(insert(aliases), [alias("champion")])
    async with open_database(database_url, create=False) as again:
        assert await names(again) == {"champion"}


async def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    program = f"""
import asyncio
from bonbon.store.database import open_database
async def main():
    async with open_database({database_url!r}):
        pass
asyncio.run(main())
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


async def test_databases_that_start_at_once_in_one_process_take_turns(database_url: str, tmp_path: Path) -> None:
    """Several databases, some of them the same, start on one event loop."""
    urls = [database_url] * 4 + [f"sqlite+aiosqlite:///{tmp_path / name}.db" for name in "abc"]
    started = [Database(url) for url in urls]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(one.start() for one in started))
        for one in started:
            assert await names(one) == set()
    finally:
        for one in started:
            await one.stop()


async def test_a_new_file_that_another_is_opening_is_waited_for(tmp_path: Path) -> None:
    """SQLite reports a lock immediately when another connection is about to create the write-ahead log."""
    file = tmp_path / "new.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        database = Database(f"sqlite+aiosqlite:///{file}")
        starting = asyncio.create_task(database.start())
        await asyncio.wait([starting], timeout=0.3)
        assert not starting.done()
        other.execute("COMMIT")
        await starting
        assert await names(database) == set()
        await database.stop()


@pytest.mark.parametrize("url", ["mysql://localhost/bonbon", "sqlite:///bonbon.db", "postgresql://localhost/bonbon"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"use sqlite\+aiosqlite") as refusal:
        Database(url)
    assert refusal.value.param == "database_url"


@pytest.mark.parametrize("name", ["", "/:memory:", "/file:bonbon.db?uri=true"])
def test_what_is_no_file_that_others_can_open_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="does not name a file that other connections can open"):
        Database(f"sqlite+aiosqlite://{name}")


def test_a_port_that_is_no_number_is_refused_without_showing_it() -> None:
    with pytest.raises(UserError, match="write @ as %40") as refusal:
        Database("postgresql+psycopg://bonbon@host:secret/bonbon")
    assert "secret" not in str(refusal.value)


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(UserError, match="database_url"):
        Database("bonbon.db")


async def test_a_missing_file_is_refused_where_none_should_be_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no database"):
        await Database(f"sqlite+aiosqlite:///{tmp_path / 'gone.db'}", create=False).start()
    assert not (tmp_path / "gone.db").exists()


async def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open the database sqlite"):
        await Database(f"sqlite+aiosqlite:///{tmp_path}/no/such/directory/bonbon.db").start()
    with pytest.raises(UserError, match="cannot open the database postgresql") as refusal:
        await Database("postgresql+psycopg://bonbon:secret@127.0.0.1:1/bonbon").start()
    assert "secret" not in str(refusal.value)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bonbon.db").write_text("not a database " * 100)
    with pytest.raises(UserError, match="not a database"):
        await Database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}").start()


async def test_a_database_that_was_not_started_says_so() -> None:
    database = Database("sqlite+aiosqlite:///unused.db")
    with pytest.raises(StoreError, match="not been started"):
        async with database.read():
            pass


def alias(name: str) -> dict[str, Any]:
    return {"alias": name, "version": "v1", "moved": datetime.now(UTC)}


async def names(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(select(aliases.c.alias))).scalars())


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError, match="half way"):  # noqa: PT012 - the transaction is what fails
        async with database.write() as connection:
            await connection.execute(insert(aliases), [alias("first")])
            raise RuntimeError("half way")
    with pytest.raises(StoreError, match="the database failed"):  # noqa: PT012
        async with database.write() as connection:
            await connection.execute(insert(aliases), [alias("second")])
            await connection.execute(insert(aliases), [alias("second")])
    assert await names(database) == set()


async def test_a_function_in_a_transaction_of_its_own_commits_whole_or_not_at_all(database: Database) -> None:
    def add(connection: Connection, *rows: str) -> int:
        connection.execute(insert(aliases), [alias(row) for row in rows])
        return len(rows)

    assert await database.transact(lambda connection: add(connection, "champion", "previous")) == 2
    with pytest.raises(StoreError, match="the database failed"):
        await database.transact(lambda connection: add(connection, "challenger") + add(connection, "champion"))
    with pytest.raises(ZeroDivisionError):
        await database.transact(lambda connection: add(connection, "challenger") // 0)
    task = asyncio.create_task(database.transact(lambda connection: add(connection, "kept")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(database) - {"kept"} == {"champion", "previous"}
    async with database.write() as connection:  # no lock is left behind
        await connection.execute(insert(aliases), [alias("challenger")])


async def test_a_reader_sees_one_moment(database: Database) -> None:
    async with database.read() as reader:
        assert (await reader.execute(select(aliases.c.alias))).all() == []
        async with database.write() as writer:
            await writer.execute(insert(aliases), [alias("late")])
        assert (await reader.execute(select(aliases.c.alias))).all() == []
    assert await names(database) == {"late"}


async def test_cancelled_callers_leave_no_lock_behind(database: Database) -> None:
    """Readers and writers are cancelled at random moments; afterwards the database accepts writes."""
    rng = random.Random(0)

    async def reads() -> None:
        while True:
            async with database.read() as connection:
                await connection.execute(select(aliases))

    async def writes(worker: int) -> None:
        for number in range(10_000):
            async with database.write() as connection:
                await connection.execute(insert(aliases), [alias(f"{worker}-{number}-{rng.random()}")])

    for _ in range(25):
        tasks = [asyncio.create_task(work) for work in (reads(), reads(), writes(0), writes(1))]
        for task in tasks:
            await asyncio.sleep(rng.random() * 0.01)
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
    async with asyncio.timeout(10), database.write() as connection:
        await connection.execute(insert(aliases), [alias("after")])
    assert "after" in await names(database)


async def test_uncancelled_work_ends_before_its_caller_does() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        ended.set()

    caller = asyncio.create_task(shielded(work()))
    for _ in range(3):
        await asyncio.sleep(0.005)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_uncancelled_work_gives_its_result_or_its_error() -> None:
    async def result() -> int:
        return 3

    async def error() -> int:
        raise ValueError("bad")

    assert await shielded(result()) == 3
    with pytest.raises(ValueError, match="bad"):
        await shielded(error())


async def test_a_failure_after_the_cancellation_passes_quietly() -> None:
    async def error() -> None:
        await asyncio.sleep(0.02)
        raise ValueError("bad")

    caller = asyncio.create_task(shielded(error()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_opening_leaves_nothing_open(database_url: str) -> None:
    async with open_database(database_url) as database:
        await names(database)
    with pytest.raises(StoreError):
        await names(database)
