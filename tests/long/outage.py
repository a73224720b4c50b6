"""Kills PostgreSQL under load, starts it again, and compares the log with the answers.

python -m tests.long.outage --seconds 60
"""

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psycopg

from tests.support.servers.postgresql_server import PostgresqlServer, postgresql_server
from tests.support.service.forked_service import ForkedService
from tests.support.service.load import SERVED, Compared, Load


@dataclass(frozen=True)
class Outage:
    """Answers before, during and after the outage, by status, and answers that the log lacks."""

    before: int
    during: int
    after: int
    statuses: dict[int, int]
    ready: tuple[int, str]
    spooled: float
    compared: Compared


async def outage(server: PostgresqlServer, directory: Path, seconds: float, *, kill_service: bool = False) -> Outage:
    """Runs the outage. With `kill_service`, also kills the service before the database is back."""
    service = ForkedService(directory, database_url=server.url, engine_options={"delay": 0.002})
    await service.start()
    load = Load(service.url)
    async with load.running():
        await asyncio.sleep(0.5)
        before = len(load.answered)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(seconds)
        during = len(load.answered) - before
        async with httpx2.AsyncClient(base_url=service.url, timeout=30.0) as client:
            ready = await client.get("/health/ready")
            spooled = await metric(client, 'bonbon_groups_kept_total{where="spooled"}')
        if kill_service:
            service.kill()
        await asyncio.to_thread(server.start)
        if kill_service:
            await service.start()
        await asyncio.sleep(0.5)
    async with httpx2.AsyncClient(base_url=service.url, timeout=30.0) as client, asyncio.timeout(60):
        while await metric(client, "bonbon_spool_bytes"):
            await asyncio.sleep(0.1)
    assert await service.stop() == 0
    with psycopg.connect(server.plain_url) as connection:
        compared = load.compare(connection.execute(SERVED))
    after = len(load.answered) - before - during
    told = (ready.status_code, ready.json()["reason"])
    return Outage(before, during, after, dict(load.statuses), told, spooled, compared)


async def metric(client: httpx2.AsyncClient, name: str) -> float:
    """Returns a sample's value; 0 when it does not exist."""
    lines = (await client.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, postgresql_server() as server:
        found = asyncio.run(outage(server, Path(directory), arguments.seconds))
    print(f"database down for {arguments.seconds:g} s: {found.during} requests answered meanwhile, {found.statuses}")
    print(f"groups spooled: {found.spooled:g}, not in the log afterwards: {len(found.compared.missing)}, ", end="")
    print(f"there more than once: {len(found.compared.doubled)}, not as answered: {len(found.compared.changed)}")
    if not found.compared.good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
