"""Tests of migrating a database of the first release, with data, to today's schema on SQLite and PostgreSQL."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, String, create_engine, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from bonbon.engines.engine import VersionKind
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_stats import stats
from bonbon.pairs.reading.reader import count_clean, pairs
from bonbon.registry.leases import acquire
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import CHAMPION, PREVIOUS, VersionState
from bonbon.store.database import open_database
from bonbon.store.schema import migrate
from bonbon.store.tables import groups
from tests.support.data.groups import scored_group
from tests.support.paths import ROOT
from tests.support.service.fake_service import BODY, CHAT
from tests.support.service.forked_service import ForkedService
from tests.support.service.running_service import WatchedEngine, running, settings_in

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GROUP = "0197" + "0" * 27
PROMPT = {"messages": [{"role": "user", "content": "Where is my order?"}]}
CANDIDATE = {"logprob": -2.5, "finish_reason": "stop", "win_probability": 0.5}
VERSION = {"base": "tiny", "created": TIME, "training": {}, "evaluation": {}, "verdict": None}

# What the first release wrote, by its own columns.
ROWS: dict[str, list[dict[str, Any]]] = {
    "groups": [
        {
            "id": GROUP + str(number), "time": TIME, "origin": "request", "tenant": "", "end_user": "ada",
            "request_id": f"req-{number}", "metadata": {"page": "help"}, "prompt": PROMPT, "prompt_digest": "d" * 64,
            "prompt_token_ids": b"\x01\x00\x00\x00", "version": "tiny", "temperature": 1.0, "top_p": 1.0, "top_k": 0,
            "max_tokens": 16, "stop": [], "seed": 7, "n": 2, "reward_name": "helpful", "reward_version": "1",
            "degraded": None, "unclean": "tied" if number else None,
        }
        for number in range(2)
    ],
    "candidates": [
        CANDIDATE | {
            "group_id": GROUP + str(number), "index": index, "text": f"answer {index}",
            "reward": 1.5 * index * (1 - number), "token_ids": bytes([index, 0, 0, 0]), "rank": index + 1,
            "served": index == 1,
        }
        for number in range(2)
        for index in range(2)
    ],
    "comparisons": [
        {
            "id": "c" * 32, "group_id": GROUP + "0", "time": TIME, "version": "tiny-bonbon-0001", "opponent": "tiny",
            "reward_name": "helpful", "reward_version": "1", "reward": 2.0, "opponent_reward": 1.0,
        }
    ],
    "feedback": [
        {
            "id": "f" * 32, "group_id": GROUP + "0", "time": TIME, "score": 1.0, "chosen": 1, "comment": "solved",
            "end_user": "ada",
        }
    ],
    "versions": [
        VERSION | {"name": "tiny", "parent": None, "kind": "base", "digest": "", "directory": "/m", "state": "retired"},
        VERSION | {
            "name": "tiny-bonbon-0001", "parent": "tiny", "kind": "adapter", "digest": "a" * 64,
            "directory": "/v/a", "state": "promoted",
        },
    ],
    "version_numbers": [{"base": "tiny", "last": 1}],
    "aliases": [
        {"alias": CHAMPION, "version": "tiny-bonbon-0001", "moved": TIME},
        {"alias": PREVIOUS, "version": "tiny", "moved": TIME},
    ],
    "events": [
        {
            "id": "e" * 32, "time": TIME, "kind": "promoted", "version": "tiny-bonbon-0001", "actor": "cli",
            "detail": {"replaced": "tiny"},
        }
    ],
    "leases": [{"name": "trainer", "holder": "somebody", "token": 41, "expires": TIME}],
}  # fmt: skip


def revisions() -> list[str]:
    """Returns the revisions, oldest first."""
    directory = ScriptDirectory(str(ROOT / "bonbon" / "store" / "migrations"))
    return [script.revision for script in directory.walk_revisions()][::-1]


def fill(connection: Connection) -> None:
    """Inserts rows by reading the tables from the database, because today's code does not know the old schema."""
    migrate(connection, revisions()[0])
    old = MetaData()
    old.reflect(connection)
    assert ROWS.keys() == old.tables.keys() - {"alembic_version"}
    for table in old.sorted_tables:
        if table.name in ROWS:
            connection.execute(insert(table), ROWS[table.name])


def counts(connection: Connection) -> dict[str, int]:
    tables = MetaData()
    tables.reflect(connection)
    return {name: connection.scalar(select(func.count()).select_from(tables.tables[name])) or 0 for name in ROWS}


@pytest.fixture
async def old(database_url: str) -> str:
    """Returns the URL of a database as the first release left it."""
    engine = create_async_engine(make_url(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(fill)
    await engine.dispose()
    return database_url


async def test_nothing_is_lost_on_the_way(old: str) -> None:
    """Migrates one revision at a time, each with the data of the previous one."""
    engine = create_async_engine(make_url(old))
    rows = {name: len(entries) for name, entries in ROWS.items()}
    for revision in revisions():
        async with engine.begin() as connection:
            await connection.run_sync(migrate, revision)
        async with engine.connect() as connection:
            assert await connection.run_sync(counts) == rows, revision
    await engine.dispose()


async def test_what_was_logged_can_be_read_and_trained_on(old: str) -> None:
    async with open_database(old, create=False) as database:
        log = PairLog(database)
        await log.start()
        group = await log.group(GROUP + "0")
        assert group is not None
        assert (group.time, group.user, group.metadata, group.tenant) == (TIME, "ada", {"page": "help"}, "")
        assert (group.sampling.seed, group.sampling.response_format) == (7, None)
        assert [(c.text, c.token_ids, c.reward, c.served) for c in group.candidates] == [
            ("answer 0", (0,), 0.0, False),
            ("answer 1", (1,), 1.5, True),
        ]
        (pair,) = [pair async for pair in pairs(database, version="tiny")]
        assert (pair.chosen_text, pair.rejected_text, pair.prompt_token_ids) == ("answer 1", "answer 0", (1,))
        found = await stats(database)
        assert (found.groups, found.clean, found.unclean, found.feedback) == (2, 1, {"tied": 1}, 1)
        assert len(found.comparisons) == 1
        await log.append(scored_group(version="tiny"))
        await log.stop()
        assert await count_clean(database, "tiny") == 2


async def test_versions_aliases_and_leases_go_on(old: str, tmp_path: Path) -> None:
    async with open_database(old, create=False) as database:
        registry = Registry(database, tmp_path / "versions")
        assert [(v.name, v.kind, v.state) for v in sorted(await registry.list(), key=lambda v: v.name)] == [
            ("tiny", VersionKind.BASE, VersionState.RETIRED),
            ("tiny-bonbon-0001", VersionKind.ADAPTER, VersionState.PROMOTED),
        ]
        assert (await registry.rollback()).name == "tiny"
        assert await registry.champion() == "tiny"
        assert [event.kind for event in await registry.history()] == ["rolled_back", "promoted"]
        # A trainer of before must not come to life again: tokens only grow.
        assert (await acquire(database, "trainer", "new", 60)).token == 42


OPEN = """
import asyncio, sys
from bonbon.store.database import open_database
from bonbon.pairs.reading.pair_stats import stats

async def main():
    async with open_database(sys.argv[1]) as database:
        print((await stats(database)).groups)

asyncio.run(main())
"""


def test_gateways_that_start_at_once_on_old_data_migrate_it_once(old: str) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", OPEN, old], stdout=subprocess.PIPE) for _ in range(3)]
    # Before it, where nothing configures the log, is the line that says what is migrated.
    assert [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes] == [b"2"] * 3


async def test_every_gateway_follows_a_promotion_by_its_own_look(database_url: str, tmp_path: Path) -> None:
    """Four gateways share one database, use the default interval, and are not notified."""
    settings = settings_in(tmp_path, registry_poll=0.5).model_copy(update={"database_url": database_url})
    async with (
        running(settings, engine=WatchedEngine()) as first,
        running(settings, engine=WatchedEngine()) as second,
        running(settings, engine=WatchedEngine()) as third,
        running(settings, engine=WatchedEngine()) as fourth,
    ):
        gateways = (first, second, third, fourth)
        for weights in (1, 2):
            version = await gateways[weights].promoted(weights)
            async with asyncio.timeout(60):
                while any(gateway.state.router.champion != version.name for gateway in gateways):
                    await asyncio.sleep(0.02)
            answers = [(await gateway.ask()).json()["bonbon"]["version"] for gateway in gateways]
            assert answers == [version.name] * 4


def of_the_next_release(url: str, *, back: bool) -> None:
    """Applies or reverts a migration that, like all others, only adds to a table that every request writes."""
    engine = create_engine(make_url(url).set(drivername=make_url(url).drivername.replace("+aiosqlite", "")))
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        if back:
            operations.drop_column("groups", "added")
        else:
            operations.add_column("groups", Column("added", String(64), nullable=True))
    engine.dispose()


async def test_a_migration_under_traffic_costs_no_request_and_no_group(database_url: str, tmp_path: Path) -> None:
    """A migration of the next release is applied and reverted while a gateway of this release answers."""
    service = ForkedService(tmp_path, database_url=database_url)
    await service.start()
    statuses, answered, enough = set(), set(), asyncio.Event()

    async def ask(client: httpx2.AsyncClient) -> None:
        while not enough.is_set():
            response = await client.post(CHAT, json=BODY)
            statuses.add(response.status_code)
            answered.add(response.json()["bonbon"]["group_id"])

    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        for _ in range(3):
            for back in (False, True):
                before = len(answered)
                await asyncio.to_thread(of_the_next_release, database_url, back=back)
                while len(answered) < before + 8 and not any(task.done() for task in asking):
                    await asyncio.sleep(0.01)
        enough.set()
        await asyncio.gather(*asking)
    assert await service.stop() == 0
    assert statuses == {200}
    async with open_database(database_url, create=False) as database, database.read() as connection:
        assert set((await connection.execute(select(groups.c.id))).scalars()) == answered
