"""Tests of a database that answers but stores nothing, or refuses one group: every answer is logged in the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon.cli.pairs_cli import app as pairs_app
from tests.long.outage import metric
from tests.support.data.stores import as_json
from tests.support.servers.postgresql_server import PostgresqlServer
from tests.support.service.fake_service import BODY, CHAT, in_thread
from tests.support.service.forked_service import ForkedService
from tests.support.service.load import SERVED, Compared, Load

READ_ONLY = ("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
WRITABLE = ("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
AWAY = ("ALTER SCHEMA public RENAME TO away", "CREATE SCHEMA public")
BACK = ("DROP SCHEMA public CASCADE", "ALTER SCHEMA away RENAME TO public")
FUNCTION = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = TG_ARGV[0]; END $$
"""
TRIGGER = "CREATE TRIGGER refuse BEFORE INSERT ON groups FOR EACH ROW {when} EXECUTE FUNCTION refuse('{state}')"
NO_TRIGGER = "DROP TRIGGER refuse ON groups"

STATES = ("40001", "53100", "XX000", "22000")
TERMINATED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bonbon'"
ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'bonbon') THEN CREATE ROLE bonbon LOGIN; END IF;
END $$
"""


@pytest.fixture
def server(one_server: PostgresqlServer) -> PostgresqlServer:
    """A running, empty server, whatever the previous test left."""
    one_server.start()
    one_server.execute(*WRITABLE, "DROP SCHEMA IF EXISTS away CASCADE", "DROP SCHEMA public CASCADE")
    one_server.execute("CREATE SCHEMA public")
    return one_server


@asynccontextmanager
async def started(directory: Path, server: PostgresqlServer, **service: Any) -> AsyncIterator[ForkedService]:
    running = ForkedService(directory, database_url=server.url, database_timeout=2.0, service=service)
    await running.start()
    try:
        yield running
    finally:
        assert await running.stop() == 0


def client_of(service: ForkedService) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=service.url, timeout=60.0)


async def ready(client: httpx2.AsyncClient) -> str:
    """Returns the database's problem as reported by a service that is still ready."""
    response = await client.get("/health/ready")
    assert response.status_code == 200
    return response.json()["reason"] or ""


async def spool_emptied(client: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while await metric(client, "bonbon_spool_bytes"):
            await asyncio.sleep(0.1)


async def test_away_then_read_only_then_empty_then_well(server: PostgresqlServer, tmp_path: Path) -> None:
    """As after a failover or during a restore, no request is refused and every answer is logged."""
    async with started(tmp_path, server) as service, client_of(service) as client:
        load = Load(service.url)

        async def answered(more: int) -> None:
            enough = len(load.answered) + more
            async with asyncio.timeout(60):
                while len(load.answered) < enough:
                    await asyncio.sleep(0.02)

        async with load.running():
            await answered(20)
            await asyncio.to_thread(server.execute, READ_ONLY[0])
            await asyncio.to_thread(server.kill)
            await answered(20)
            await asyncio.to_thread(server.start)
            await answered(20)
            async with asyncio.timeout(60):
                while "rejects groups: ReadOnlySqlTransaction" not in (await ready(client)):
                    await asyncio.sleep(0.1)
            service.kill()
            await service.start()  # a database that can only be read will do
            await answered(20)
            await asyncio.to_thread(server.execute, *WRITABLE, *AWAY)
            await answered(20)
            await asyncio.to_thread(server.execute, *BACK)
            await answered(20)
        await spool_emptied(client)
        assert await metric(client, "bonbon_groups_set_aside") == 0
        assert load.statuses.keys() == {200}
        assert load.compare(server.rows(SERVED)) == Compared()
        assert not await ready(client)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        (("ALTER TABLE candidates RENAME TO gone",), ("ALTER TABLE gone RENAME TO candidates",)),
        (("ALTER TABLE groups RENAME COLUMN idempotency TO gone",), ("ALTER TABLE groups RENAME gone TO idempotency",)),
        (("REVOKE INSERT ON groups FROM bonbon",), ("GRANT INSERT ON groups TO bonbon",)),
        (("ALTER ROLE bonbon CONNECTION LIMIT 0", TERMINATED), ("ALTER ROLE bonbon CONNECTION LIMIT -1",)),
        *(((FUNCTION, TRIGGER.format(when="", state=state)), (NO_TRIGGER,)) for state in STATES),
    ],
    ids=[
        "a table is gone", "another schema", "no grant", "too many connections",
        "serialization failures", "a full disk", "an internal error", "an error that one row could have",
    ],
)  # fmt: skip
async def test_what_fails_for_every_group_is_held_against_none(
    server: PostgresqlServer, tmp_path: Path, broken: tuple[str, ...], mended: tuple[str, ...]
) -> None:
    server.execute(
        ROLE,
        "GRANT ALL ON SCHEMA public TO bonbon",
        "ALTER ROLE bonbon CONNECTION LIMIT -1",
    )
    settings = {"database_url": server.url_of("bonbon"), "database_timeout": 2.0}
    service = ForkedService(tmp_path, **settings)
    await service.start()
    server.execute("REASSIGN OWNED BY bonbon TO postgres", "GRANT ALL ON ALL TABLES IN SCHEMA public TO bonbon")
    async with client_of(service) as client:

        async def ask(count: int) -> list[str]:
            found = [await client.post(CHAT, json=BODY) for _ in range(count)]
            assert {response.status_code for response in found} == {200}
            return [response.json()["bonbon"]["group_id"] for response in found]

        asked = await ask(2)
        server.execute(*broken)
        asked += await ask(12)
        # Several passes over the spool, in which nothing is taken.
        before = await metric(client, "bonbon_spool_bytes")
        await asyncio.sleep(2.5)
        assert await metric(client, "bonbon_spool_bytes") == before > 0
        server.execute(*mended)
        asked += await ask(2)
        await spool_emptied(client)
        assert {group_id for (group_id,) in server.rows("SELECT id FROM groups")} == set(asked)
        assert await metric(client, "bonbon_groups_set_aside") == 0
    assert await service.stop() == 0


async def test_a_table_that_only_the_spool_needs_is_held_against_no_group(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    """New groups are stored without the table of erasures, so the database seems to refuse only groups of the spool."""
    async with started(tmp_path, server) as service, client_of(service) as client:

        async def ask() -> str:
            response = await client.post(CHAT, json=BODY)
            assert response.status_code == 200
            group_id: str = response.json()["bonbon"]["group_id"]
            return group_id

        server.execute("ALTER TABLE groups RENAME TO gone")
        asked = [await ask() for _ in range(3)]
        service.kill()
        server.execute("ALTER TABLE gone RENAME TO groups", "ALTER TABLE erasures RENAME TO gone")
        await service.start()
        for _ in range(12):  # several passes over the spool, with groups that the database would take between them
            asked.append(await ask())
            await asyncio.sleep(0.3)
        assert await metric(client, "bonbon_groups_set_aside") == 0
        assert "UndefinedTable" in await ready(client)
        server.execute("ALTER TABLE gone RENAME TO erasures")
        await spool_emptied(client)
        assert {group_id for (group_id,) in server.rows("SELECT id FROM groups")} == set(asked)


async def test_a_group_that_alone_is_refused_is_set_aside_seen_and_replayed(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    async with started(tmp_path, server) as service, client_of(service) as client:

        async def ask(user: str) -> str:
            response = await client.post(CHAT, json=BODY | {"user": user})
            assert response.status_code == 200
            group_id: str = response.json()["bonbon"]["group_id"]
            return group_id

        server.execute(FUNCTION, TRIGGER.format(when="WHEN (new.end_user = 'bad')", state="22000"))
        bad = [await ask("bad") for _ in range(2)]
        good = []
        async with asyncio.timeout(60):
            while await metric(client, "bonbon_groups_set_aside") < 2:
                good.append(await ask("good"))
                await asyncio.sleep(0.2)
        await spool_emptied(client)
        assert {group_id for (group_id,) in server.rows("SELECT id FROM groups")} == set(good)
        assert not await ready(client)
        options = ("--data-dir", tmp_path / "data", "--database", server.url)
        shown = in_thread(as_json, pairs_app, "spool", *options)
        assert (shown["waiting"], sum(shown["set_aside"].values())) == (0, 2)
        again = in_thread(as_json, pairs_app, "spool", "--replay", *options)
        assert (again["stored"], again["left"]) == (0, 2)
        server.execute(NO_TRIGGER)
        replayed = in_thread(as_json, pairs_app, "spool", "--replay", *options)
        assert (replayed["stored"], replayed["left"]) == (2, 0)
        assert {group_id for (group_id,) in server.rows("SELECT id FROM groups")} == {*good, *bad}
        async with asyncio.timeout(60):
            while await metric(client, "bonbon_groups_set_aside"):
                await asyncio.sleep(0.1)
