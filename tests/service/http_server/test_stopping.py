"""SIGTERM: running requests are answered or receive an error, and nothing is lost."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.service.fake_service import BODY, CHAT, rows
from tests.support.service.forked_service import ForkedService

STREAM = BODY | {"model": "base", "stream": True}
ENDLESS = {"delay": 3.0}


async def in_flight(client: httpx2.AsyncClient, count: int) -> None:
    """Waits until this many requests are admitted."""
    async with asyncio.timeout(30):
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            if f"bonbon_tokens_in_flight {count:.1f}" in lines:
                return
            await asyncio.sleep(0.02)


async def test_requests_in_flight_are_answered_and_new_ones_find_nobody(tmp_path: Path) -> None:
    service = ForkedService(tmp_path, engine_options={"delay": 0.1})
    await service.start()
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        asking = [asyncio.create_task(client.post(CHAT, json=body)) for body in (BODY, STREAM)]
        await in_flight(client, 5 * 12)
        assert await service.stop() == 0
        whole, stream = await asyncio.gather(*asking)
        with pytest.raises(httpx2.ConnectError):
            await client.get("/health/live")
    assert whole.status_code == 200
    assert stream.text.endswith("data: [DONE]\n\n")
    logged = {group_id for (group_id,) in rows(tmp_path, "SELECT id FROM groups")}
    last = json.loads(stream.text.split("\n\n")[-3].removeprefix("data: "))
    assert logged == {whole.json()["bonbon"]["group_id"], last["bonbon"]["group_id"]}


@pytest.mark.parametrize("how", ["a second signal", "the end of the grace period"])
async def test_what_does_not_end_is_told_so(tmp_path: Path, how: str) -> None:
    grace = 600.0 if how == "a second signal" else 0.5
    service = ForkedService(tmp_path, engine_options=ENDLESS, service={"drain_timeout": grace})
    await service.start()
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        answered = await client.post(CHAT, json=BODY | {"max_tokens": 1}, timeout=60.0)
        asking: list[asyncio.Task[Any]] = [
            asyncio.create_task(client.post(CHAT, json=body)) for body in (BODY, STREAM, BODY | {"stream": True})
        ]
        await in_flight(client, 9 * 12)
        os.kill(service.pid, signal.SIGTERM)
        if how == "a second signal":
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in asking)
            os.kill(service.pid, signal.SIGTERM)
        whole, *streams = await asyncio.gather(*asking)
        assert await service.wait() == 0
    assert whole.status_code == 503
    assert "the service is stopping" in whole.json()["error"]["message"]
    for stream in streams:
        last = json.loads(stream.text.rstrip("\n").rpartition("data: ")[2])
        assert "the service is stopping" in last["error"]["message"]
    assert rows(tmp_path, "SELECT id FROM groups") == [(answered.json()["bonbon"]["group_id"],)]


SLOW_TO_COME_AND_GO = """
import atexit, time
def leave():
    print("leaving", flush=True)
    time.sleep(1)
atexit.register(leave)
print("coming", flush=True)
time.sleep({seconds})
def score(prompt, completions):
    return [float(len(text)) for text in completions]
"""


@pytest.mark.parametrize("moment", ["coming", "leaving"])
async def test_a_signal_before_the_start_or_after_the_end_is_an_orderly_end_too(tmp_path: Path, moment: str) -> None:
    """The signal arrives while the reward's module is imported, or while it cleans up after the server has ended."""
    seconds = 600 if moment == "coming" else 0
    (tmp_path / "slow_reward.py").write_text(SLOW_TO_COME_AND_GO.format(seconds=seconds))
    settings = {"ENGINE": "fake", "REWARD": "python:slow_reward:score", "DATA_DIR": str(tmp_path), "SERVICE__PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bonbon", "serve",
        cwd=tmp_path, env={**os.environ, **{f"BONBON_{name}": value for name, value in settings.items()}},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(120):
        async for line in process.stdout:
            if line.startswith(b"bonbon is ready") or line.strip() == moment.encode():
                process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_client_that_reads_nothing_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    service = ForkedService(tmp_path, engine_options=ENDLESS, service={"drain_timeout": 0.2})
    await service.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    body = json.dumps(STREAM).encode()
    writer.write(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % CHAT.encode())
    writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    async with httpx2.AsyncClient(base_url=service.url) as client:
        await in_flight(client, 12)
    async with asyncio.timeout(60):
        assert await service.stop() == 0
    writer.close()
    del reader
