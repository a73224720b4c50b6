"""Tests of deleting or replacing SQLite's file under the running service."""

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx2
import pytest

from tests.long.outage import metric
from tests.support.service.fake_service import BODY, CHAT, new_key, rows
from tests.support.service.forked_service import ForkedService

QUERY = "SELECT id FROM groups"


class Asked:
    """A service that receives requests, and the groups that its answers named."""

    def __init__(self, service: ForkedService, client: httpx2.AsyncClient, directory: Path) -> None:
        self.service, self.client, self.directory = service, client, directory
        self.file = directory / "data" / "bonbon.db"

    async def ask(self, count: int = 3) -> set[str]:
        found = [await self.client.post(CHAT, json=BODY) for _ in range(count)]
        assert {response.status_code for response in found} == {200}
        return {response.json()["bonbon"]["group_id"] for response in found}

    async def reason(self) -> str:
        response = await self.client.get("/health/ready")
        assert response.status_code == 200
        return response.json()["reason"] or ""

    async def settled(self) -> None:
        """Waits until the spool is empty and the database is healthy."""
        async with asyncio.timeout(60):
            while await metric(self.client, "bonbon_spool_bytes") or await self.reason():
                await asyncio.sleep(0.1)

    @property
    def logged(self) -> set[str]:
        return {group_id for (group_id,) in rows(self.directory, QUERY)}


@asynccontextmanager
async def asked(directory: Path) -> AsyncIterator[Asked]:
    service = ForkedService(directory)
    await service.start()
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        yield Asked(service, client, directory)
    assert await service.stop() == 0


async def test_an_export_says_that_the_database_is_away(tmp_path: Path) -> None:
    """Once its stream has begun, an export could only be broken off."""
    (tmp_path / "data").mkdir()
    _, key = new_key(tmp_path, "exports", "--scope", "export", "--scope", "complete")
    async with asked(tmp_path) as service:
        service.client.headers["authorization"] = f"Bearer {key}"
        logged = await service.ask()
        move(service.file)
        response = await service.client.get("/v1/pairs")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        service.file.with_name("elsewhere.db").rename(service.file)
        await service.settled()
        lines = (await service.client.get("/v1/pairs")).text.splitlines()
        assert {json.loads(line)["group_id"] for line in lines} == logged
        assert (await service.client.get("/v1/pairs?version=nobody")).text == ""


def delete(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()


def move(file: Path) -> None:
    file.rename(file.with_name("elsewhere.db"))


@pytest.mark.parametrize("take_away", [delete, move])
async def test_a_file_that_is_gone_is_noticed_and_what_is_answered_is_there_after_a_restart(
    tmp_path: Path, take_away: Callable[[Path], None]
) -> None:
    async with asked(tmp_path) as service:
        await service.ask()
        take_away(service.file)
        late = await service.ask()
        assert "its file is gone" in await service.reason()
        assert not service.file.exists(), "no empty file in its place"
        assert await service.service.stop() == 0
        await service.service.start()
        await service.settled()
        assert service.logged >= late


async def test_a_file_that_is_put_back_is_found(tmp_path: Path) -> None:
    async with asked(tmp_path) as service:
        early = await service.ask()
        move(service.file)
        late = await service.ask()
        service.file.with_name("elsewhere.db").rename(service.file)
        await service.settled()
        assert service.logged == early | late


async def test_another_good_file_is_taken_into_use_and_a_bad_one_is_not(tmp_path: Path) -> None:
    async with asked(tmp_path) as service:
        early = await service.ask()
        backup = tmp_path / "backup.db"
        with closing(sqlite3.connect(service.file)) as connection:
            connection.execute(f"VACUUM INTO '{backup}'")
        await service.ask()  # after the backup: lost by restoring it
        bad = tmp_path / "bad.db"
        with closing(sqlite3.connect(bad)) as connection:
            connection.execute("CREATE TABLE other (here)")
        os.replace(bad, service.file)
        late = await service.ask()
        assert "rejects groups" in await service.reason() or "is unavailable" in await service.reason()
        os.replace(backup, service.file)
        late |= await service.ask()
        await service.settled()
        late |= await service.ask()
        assert service.logged == early | late
        assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_a_log_that_is_deleted_takes_nothing_with_it(tmp_path: Path, suffix: str) -> None:
    """SQLite would continue with the deleted file and lose it with the process."""
    async with asked(tmp_path) as service:
        groups = await service.ask()
        Path(f"{service.file}{suffix}").unlink()
        groups |= await service.ask()
        await service.settled()
        groups |= await service.ask()
        service.service.kill()
        await service.service.start()
        await service.settled()
        assert service.logged == groups
        assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_copy_of_the_file_holds_nobody_up(tmp_path: Path) -> None:
    """Operations that leave the file in place change nothing."""
    async with asked(tmp_path) as service:
        groups = await service.ask()
        shutil.copy(service.file, tmp_path / "copy.db")
        os.utime(service.file)
        os.chmod(service.file, 0o600)
        groups |= await service.ask()
        assert not await service.reason()
        assert await metric(service.client, 'bonbon_groups_kept_total{where="spooled"}') == 0
        assert service.logged == groups
