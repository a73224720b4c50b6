"""Tests of a database that neither answers nor refuses: callers wait for one call at most, and nothing is lost."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import text

from bonbon.concurrency.deadlines import Timeouts
from bonbon.errors import StoreUnavailable, UserError
from bonbon.store.database import Database
from tests.long.outage import metric
from tests.support.servers.postgresql_server import PostgresqlServer
from tests.support.service.fake_service import BODY, CHAT, rows
from tests.support.service.forked_service import ForkedService

ONE = text("SELECT 1")
TIMEOUT = 1.0
PATIENCE = 30.0
"""In seconds; far more than the service may take, and far less than the database is held, so a hang exceeds it."""


@pytest.fixture
def server(one_server: PostgresqlServer) -> PostgresqlServer:
    """A running, empty server, whatever the previous test left."""
    one_server.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return one_server


@contextmanager
def stopped(server: PostgresqlServer) -> Iterator[None]:
    """Stops every process of the server."""
    server.suspend()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def locked(server: PostgresqlServer) -> Iterator[None]:
    """Holds a lock on the table of groups."""
    with psycopg.connect(server.plain_url) as connection:
        connection.execute("LOCK TABLE groups IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def written_to(directory: Path) -> Iterator[None]:
    """Holds SQLite's write lock."""
    connection = sqlite3.connect(directory / "data" / "bonbon.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


HELD = ("stopped", "locked", "written to")


@pytest.fixture(params=HELD)
def held(request: pytest.FixtureRequest) -> str:
    how: str = request.param
    return how


@asynccontextmanager
async def begun(
    held: str, request: pytest.FixtureRequest, directory: Path, **settings: Any
) -> AsyncIterator[tuple[ForkedService, Callable[[], Any]]]:
    """Starts a service on a database, and yields it with the function that makes the database hang."""
    hold: Callable[[], Any]
    if held == "written to":
        url, hold = "", lambda: written_to(directory)
    else:
        server: PostgresqlServer = request.getfixturevalue("server")
        url, hold = server.url, lambda: stopped(server) if held == "stopped" else locked(server)
    service = ForkedService(directory, database_url=url, database_timeout=TIMEOUT, **settings)
    await service.start()
    try:
        yield service, hold
    finally:
        await service.stop()


def logged(request: pytest.FixtureRequest, held: str, directory: Path) -> set[str]:
    query = "SELECT id FROM groups"
    if held == "written to":
        return {group_id for (group_id,) in rows(directory, query)}
    server: PostgresqlServer = request.getfixturevalue("server")
    return {group_id for (group_id,) in server.rows(query)}


async def test_requests_are_answered_and_everything_else_goes_on(
    held: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with begun(held, request, tmp_path) as (service, hold):
        async with httpx2.AsyncClient(base_url=service.url, timeout=PATIENCE) as client:

            async def ask(**headers: str) -> str:
                response = await client.post(CHAT, json=BODY, headers=headers)
                assert response.status_code == 200, response.text
                group_id: str = response.json()["bonbon"]["group_id"]
                return group_id

            asked = [await ask()]
            with hold():
                key = {"idempotency-key": "one"}
                asked += await asyncio.gather(*(ask() for _ in range(20)), ask(**key))
                assert await ask(**key) == asked[-1], "the spool answers what comes again"
                asked.append(await ask(**{"x-stainless-retry-count": "1"}))
                ready = await client.get("/health/ready")
                assert ready.status_code == 200
                assert "the database is unavailable" in ready.json()["reason"]
                assert "Cancelled" not in ready.text
                assert await metric(client, 'bonbon_groups_kept_total{where="spooled"}') >= 20
                assert (await client.get("/health/live")).status_code == 200
                assert (await client.get("/v1/models")).status_code == 200
            async with asyncio.timeout(60):
                while await metric(client, "bonbon_spool_bytes"):
                    await asyncio.sleep(0.1)
            asked.append(await ask())
        assert logged(request, held, tmp_path) == set(asked)


@pytest.mark.parametrize("signals", [1, 3])
async def test_a_stop_does_not_wait_for_it(
    held: str, request: pytest.FixtureRequest, tmp_path: Path, signals: int
) -> None:
    limits = {"drain_timeout": 1.0 if signals == 1 else 600.0}
    async with begun(held, request, tmp_path, service=limits, engine_options={"delay": 0.01}) as (service, hold):
        async with httpx2.AsyncClient(base_url=service.url, timeout=PATIENCE) as client:
            first = (await client.post(CHAT, json=BODY)).json()["bonbon"]["group_id"]
            with hold():
                asking = [asyncio.create_task(client.post(CHAT, json=BODY)) for _ in range(4)]
                await asyncio.sleep(0.5)
                for _ in range(signals):
                    os.kill(service.pid, signal.SIGTERM)
                    await asyncio.sleep(0.2)
                async with asyncio.timeout(PATIENCE):
                    assert await service.wait() in ((0,) if signals == 1 else (0, 1))
                answers = await asyncio.gather(*asking, return_exceptions=True)
        told = [a.json()["bonbon"]["group_id"] for a in answers if isinstance(a, httpx2.Response) and a.is_success]
        await service.start()
        assert logged(request, held, tmp_path) >= {first, *told}


async def test_a_connection_that_was_given_up_is_not_used_again(server: PostgresqlServer) -> None:
    """Calls and callers give up concurrently and repeatedly; afterwards every connection of the pool works."""
    database = Database(server.url, timeouts=Timeouts(call=0.5, bulk=1.0))
    await database.start()

    async def read(*, bulk: bool = False) -> int:
        async with database.read(bulk=bulk) as transaction:
            return int((await transaction.execute(ONE)).scalar_one())

    async def impatient() -> None:
        async with asyncio.timeout(0.05):
            await read()

    for _ in range(2):
        assert await asyncio.gather(*(read() for _ in range(10))) == [1] * 10
        with stopped(server):
            work = [read() for _ in range(15)] + [read(bulk=True) for _ in range(5)] + [impatient() for _ in range(20)]
            async with asyncio.timeout(PATIENCE):
                found = await asyncio.gather(*work, return_exceptions=True)
            assert all(isinstance(error, StoreUnavailable | TimeoutError) for error in found), found
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*(read() for _ in range(30))) == [1] * 30
    with stopped(server):
        left = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        async with asyncio.timeout(PATIENCE):
            await database.stop()
        with pytest.raises((StoreUnavailable, asyncio.CancelledError)):
            await left


async def test_a_database_that_hangs_at_the_start_is_told_of(server: PostgresqlServer) -> None:
    with stopped(server):
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(UserError, match=r"cannot open the database .* did not answer within 0\.5 s"):
                await Database(server.url, timeouts=Timeouts(call=0.5, bulk=1.0)).start()
