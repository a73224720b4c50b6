"""Tests of clocks that are set while processes run: libfaketime changes the wall clock of a child process only."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from bonbon.demo.service_process import ServiceProcess
from bonbon.errors import Conflict
from bonbon.store.database import Database
from tests.support.needs import needs
from tests.support.service.fake_service import BODY, CHAT, client_of, fake_service, rows, started
from trainer.held_lease import HeldLease

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = needs(LIBRARY, "libfaketime is not installed: apt-get install libfaketime")

HOUR = timedelta(hours=1)


class Clock:
    """The wall clock of processes that run with `environment`; `set` changes it while they run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(timedelta(0))
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Its remedy for a fault of old C libraries; without the fault, waits of milliseconds become seconds.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def set(self, ahead: timedelta) -> None:
        """Sets the clock to this time ahead of the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead.total_seconds():+.0f}")
        new.replace(self._file)


@asynccontextmanager
async def clocked(directory: Path, clock: Clock, **settings: object) -> AsyncIterator[ServiceProcess]:
    service = fake_service(directory, **settings)
    service.environment |= clock.environment
    async with started(service):
        yield service


class Client:
    """Sends requests, streaming and not, each twice; the second answer must equal the first."""

    def __init__(self, client: httpx2.AsyncClient, name: int) -> None:
        self.client, self.name = client, name
        self.answered: list[str] = []
        self.refused: list[str] = []

    async def ask_until(self, enough: asyncio.Event) -> None:
        while not enough.is_set():
            await self._ask(stream=(self.name + len(self.answered)) % 2 == 0)

    async def _ask(self, *, stream: bool) -> None:
        headers = {"idempotency-key": str(uuid4())}
        told = []
        for _ in range(2):
            response = await self.client.post(CHAT, json=BODY | {"stream": stream}, headers=headers)
            if response.status_code != 200 or (stream and not response.text.endswith("data: [DONE]\n\n")):
                self.refused.append(response.text)
                return
            last = response.text.split("\n\n")[-3].removeprefix("data: ") if stream else response.text
            told.append(json.loads(last)["bonbon"]["group_id"])
        if told[0] != told[1]:
            self.refused.append(f"{told[0]} came again as {told[1]}")
        self.answered.append(told[0])


async def test_a_service_whose_clock_is_set_loses_and_refuses_nothing(tmp_path: Path) -> None:
    """The clock goes an hour forward, back, an hour back and forward again, under load, with retention and limits
    active.
    """
    clock = Clock(tmp_path / "clock")
    settings: dict[str, Any] = {
        "retention_days": 1,
        "retention_poll": 0.5,
        "registry_poll": 0.1,
        "limits__requests_per_minute": 1_000_000,
    }
    steps = [timedelta(0), HOUR, timedelta(0), -HOUR, timedelta(0)]
    async with clocked(tmp_path, clock, **settings) as service, client_of(service) as http:
        clients, enough = [Client(http, name) for name in range(4)], asyncio.Event()
        asking = [asyncio.create_task(client.ask_until(enough)) for client in clients]
        for ahead in steps:
            clock.set(ahead)
            counts = [len(client.answered) for client in clients]
            async with asyncio.timeout(60):
                while any(len(client.answered) < count + 10 for client, count in zip(clients, counts, strict=True)):
                    await asyncio.sleep(0.01)
                    assert not any(task.done() for task in asking)
        enough.set()
        await asyncio.gather(*asking)
        assert (await http.get("/health/ready")).status_code == 200
    assert [client.refused for client in clients] == [[]] * 4
    answered = [group_id for client in clients for group_id in client.answered]
    logged = dict(rows(tmp_path, "SELECT id, time FROM groups"))
    assert sorted(logged) == sorted(answered), "every answered group once"
    for client in clients:
        assert client.answered == sorted(client.answered), "ids in the order they were made"
    times = [datetime.fromisoformat(logged[group_id]) for group_id in sorted(logged)]
    jumps = [later - earlier for earlier, later in pairwise(times)]
    assert max(jumps) > HOUR / 2, "the clock was set forward"
    assert min(jumps) < -HOUR / 2, "the clock was set back"
    assert "Traceback" not in service.log.read_text()


CONTENDER = """
import asyncio, sys
from bonbon.store.database import open_database
from bonbon.errors import Conflict
from trainer.held_lease import HeldLease

async def main():
    async with open_database({url!r}) as database:
        try:
            async with HeldLease(database, "trainer", {seconds}):
                print("held", flush=True)
                await asyncio.sleep({keep})
        except Conflict as conflict:
            print(conflict, flush=True)

asyncio.run(main())
"""


def contender(database: Database, clock: Clock, *, seconds: float, keep: float = 0.0) -> "subprocess.Popen[str]":
    """Starts a process that tries to take the lease and keeps it for `keep` seconds."""
    url = database.url.render_as_string(hide_password=False)
    program = CONTENDER.format(url=url, seconds=seconds, keep=keep)
    environment = os.environ | clock.environment
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_a_lease_is_not_taken_from_a_holder_who_lives(
    database: Database, tmp_path: Path, ahead: timedelta
) -> None:
    """According to the contender's clock, the lease expired an hour ago or is held for another hour."""
    clock = Clock(tmp_path / "clock")
    clock.set(ahead)
    async with HeldLease(database, "trainer", 15.0) as hold:  # renewed every five seconds, watched for seven and a half
        process = contender(database, clock, seconds=1.0)
        said, _ = await asyncio.to_thread(process.communicate, timeout=120)
        assert "is held by" in said
        await hold.confirm()


@pytest.mark.parametrize("ahead", [HOUR, timedelta(0)], ids=["ahead", "right"])
async def test_a_dead_holders_lease_is_taken_whatever_its_clock_said(
    database: Database, tmp_path: Path, ahead: timedelta
) -> None:
    """A dead holder whose clock was an hour ahead does not keep the lease for that hour."""
    clock = Clock(tmp_path / "clock")
    clock.set(ahead)
    process = contender(database, clock, seconds=1.0, keep=600)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    async with asyncio.timeout(60):
        while True:
            try:
                async with HeldLease(database, "trainer", 1.0):
                    break
            except Conflict:
                await asyncio.sleep(0.1)
