"""Failures below the running service: its reward over HTTP, and its disk."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, Response

from tests.support.full_disk import fill
from tests.support.servers.scripted_server import Answer, Slow, lengths, serving
from tests.support.service.fake_service import BODY, CHAT, rows
from tests.support.service.forked_service import ForkedService


def count(body: dict[str, Any]) -> int:
    return len(body["completions"])


FAULTS: dict[str, Answer | Slow] = {
    "slow": Slow(5.0, lengths),
    "an error": JSONResponse({"error": "out of memory"}, 500),
    "not a number": lambda body: Response('{"scores": [' + ", ".join(["NaN"] * count(body)) + "]}"),
    "no numbers": lambda body: JSONResponse({"scores": ["x"] * count(body)}),
    "too few": lambda body: JSONResponse({"scores": [1.0] * (count(body) - 1)}),
    "too many": lambda body: JSONResponse({"scores": [1.0] * (count(body) + 1)}),
    "not JSON": Response("<html>"),
    "elsewhere": Response(status_code=302, headers={"location": "http://127.0.0.1:9/"}),
}


@pytest.mark.parametrize("fault", [*FAULTS, "nobody"])
async def test_a_reward_that_fails_costs_the_ranking_and_nothing_else(tmp_path: Path, fault: str) -> None:
    """The answer is the first candidate, degraded and not trained on; ranking resumes when the reward works."""
    with serving(lengths) as reward:
        options = {"kind": "http", "target": reward.url, "attempts": 1}
        service = ForkedService(tmp_path, reward=options, service={"reward_deadline": 1.0})
        await service.start()
        if fault == "nobody":
            pass  # the block's end takes the server away
        else:
            reward.answers[:] = [FAULTS[fault]]
            await ask_degraded(service, tmp_path)
            reward.answers[:] = [lengths]
            async with asyncio.timeout(60), client_of(service) as client:
                while (await client.post(CHAT, json=BODY)).json()["bonbon"]["degraded"]:
                    await asyncio.sleep(0.2)
    if fault == "nobody":
        await ask_degraded(service, tmp_path)
    assert await service.stop() == 0


async def ask_degraded(service: ForkedService, directory: Path) -> None:
    async with client_of(service) as client:
        for stream in (False, True):
            response = await client.post(CHAT, json=BODY | {"stream": stream})
            assert response.status_code == 200
            last = response.text.split("\n\n")[-3].removeprefix("data: ") if stream else response.text
            told = json.loads(last)["bonbon"]
            assert (told["degraded"], told["chosen"], told["rewards"]) == (True, [0], [None])
            found = rows(directory, "SELECT unclean FROM groups WHERE id = ?", told["group_id"])
            assert found == [("degraded",)]


def client_of(service: ForkedService) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=service.url, timeout=60.0)


async def test_a_full_disk_is_a_503_and_passes_when_there_is_space(small_disk: Path) -> None:
    """The log and the spool are on this disk."""
    service = ForkedService(small_disk)
    await service.start()
    async with client_of(service) as client:
        logged = [(await client.post(CHAT, json=BODY)).json()["bonbon"]["group_id"] for _ in range(5)]
        ballast = fill(small_disk)
        statuses = set()
        for _ in range(20):
            response = await client.post(CHAT, json=BODY | {"metadata": {"filling": "x" * 512}})
            statuses.add(response.status_code)
            if response.status_code == 200:
                logged.append(response.json()["bonbon"]["group_id"])
        assert 503 in statuses
        assert statuses <= {200, 503}
        assert response.headers["retry-after"]
        unlogged = await client.post(CHAT, json=BODY | {"store": False})
        assert unlogged.status_code == 200
        ballast.unlink()
        async with asyncio.timeout(60):
            while (response := await client.post(CHAT, json=BODY)).status_code == 503:
                await asyncio.sleep(0.1)
            logged.append(response.json()["bonbon"]["group_id"])
            while "bonbon_spool_bytes 0.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.1)
    assert await service.stop() == 0
    assert {group_id for (group_id,) in rows(small_disk, "SELECT id FROM groups")} == set(logged)
