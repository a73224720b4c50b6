"""Tests of a real PostgreSQL server that is killed under the running service and started again."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.long.outage import metric, outage
from tests.support.servers.postgresql_server import PostgresqlServer
from tests.support.service.forked_service import ForkedService
from tests.support.service.load import Compared

BODY = {"model": "bonbon", "messages": [{"role": "user", "content": "x" * 1000}], "max_tokens": 12}


@pytest.fixture
def server(one_server: PostgresqlServer) -> PostgresqlServer:
    """Running, whatever the test before has left."""
    one_server.start()
    return one_server


async def test_while_the_database_is_down_requests_are_answered_and_afterwards_the_log_has_them(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    found = await outage(server, tmp_path, seconds=3.0)
    assert found.during > 10
    assert found.statuses.keys() == {200}
    assert found.spooled > 10
    assert found.ready[0] == 200
    assert "database is unavailable" in found.ready[1]
    assert found.compared == Compared()


async def test_a_service_that_is_killed_while_the_database_is_down_has_lost_nothing(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    found = await outage(server, tmp_path, seconds=1.0, kill_service=True)
    assert found.spooled > 0
    assert found.compared == Compared()


@pytest.mark.parametrize("choice", ["refuse", "drop"])
async def test_a_full_spool_does_what_was_chosen(server: PostgresqlServer, tmp_path: Path, choice: str) -> None:
    limits = {"spool_bytes": 20_000, "spool_full": choice}
    service = ForkedService(tmp_path, database_url=server.url, service=limits)
    await service.start()
    async with httpx2.AsyncClient(base_url=service.url, timeout=30.0) as client:

        async def ask() -> httpx2.Response:
            return await client.post("/v1/chat/completions", json=BODY)

        server.kill()
        for _ in range(20):
            response = await ask()
        ready = await client.get("/health/ready")
        if choice == "refuse":
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert ready.status_code == 503
            unlogged = await client.post("/v1/chat/completions", json=BODY | {"store": False})
            assert unlogged.status_code == 200, "what is not to be logged needs no log"
        else:
            assert response.status_code == 200
            assert response.json()["bonbon"]["group_id"] is None
            assert await metric(client, 'bonbon_groups_kept_total{where="dropped"}') >= 1
            assert ready.status_code == 200
        server.start()
        async with asyncio.timeout(60):
            while await metric(client, "bonbon_spool_bytes") or (await client.get("/health/ready")).json()["reason"]:
                await asyncio.sleep(0.1)
        assert (await ask()).json()["bonbon"]["group_id"]
    assert await service.stop() == 0


async def test_a_retry_while_the_database_is_down_gets_the_first_answer_whoever_gave_it(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    """Two services share a data directory. The first attempt was logged, or waits in the one's spool or the other's."""
    services = [ForkedService(tmp_path, database_url=server.url) for _ in range(2)]
    for service in services:
        await service.start()

    async def ask(service: ForkedService, key: str) -> dict[str, Any]:
        async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
            response = await client.post("/v1/chat/completions", json=BODY, headers={"idempotency-key": key})
        assert response.status_code == 200
        answer = response.json()
        return {"group": answer["bonbon"]["group_id"], "choices": answer["choices"]}

    one, other = services
    first = {"logged": await ask(one, "logged")}
    server.kill()
    first |= {"spooled here": await ask(one, "spooled here"), "spooled there": await ask(other, "spooled there")}
    again = {key: await ask(one, key) for key in first}
    overlapping = await asyncio.gather(*(ask(one, "overlapping") for _ in range(6)))
    server.start()
    async with asyncio.timeout(60):
        for service in services:
            async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
                while await metric(client, "bonbon_spool_bytes"):
                    await asyncio.sleep(0.1)
    late = {key: await ask(other, key) for key in first}
    for service in services:
        assert await service.stop() == 0
    assert again == first
    assert late == first
    assert len({answer["group"] for answer in overlapping}) == 1
    logged = [group_id for (group_id,) in server.rows("SELECT id FROM groups WHERE idempotency IS NOT NULL")]
    doubled = server.rows("SELECT count(*) FROM groups WHERE unclean = 'repeated'")
    assert {answer["group"] for answer in [*first.values(), overlapping[0]]} <= set(logged)
    assert doubled == [(0,)]
