"""The service as a separate process on the shipped models: killed, rolled back, disconnected and stopped."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAIError

from bonbon.demo.service_process import ServiceProcess
from bonbon.demo.tiny_models import TinyModels
from bonbon.demo.traffic import SwapTraffic, Traffic
from bonbon.demo.world import requests
from bonbon.pairs.pair_log import PairLog
from bonbon.store.database import open_database
from tests.support.models.adapters import approve, database_url, register_adapter

REQUESTS = requests(7, 200)


@pytest.fixture
def environment(tiny_models: TinyModels, tmp_path: Path) -> dict[str, str]:
    return {
        "BONBON_MODEL": str(tiny_models.policy),
        "BONBON_REWARD": str(tiny_models.reward),
        "BONBON_DATA_DIR": str(tmp_path / "data"),
        "BONBON_N": "4",
        "BONBON_SERVICE__REGISTRY_POLL": "0.1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
async def service(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    process = ServiceProcess(environment, tmp_path / "service.log")
    await process.start()
    yield process
    await process.stop()


def client_of(service: ServiceProcess) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60.0)


async def test_every_answered_request_survives_kill_9(
    service: ServiceProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """Kills the service twice during traffic: every answer is in the log, and it starts again by itself."""
    answered: list[str] = []
    for round_number, count in enumerate((15, 25)):

        async def ask(seed: int, client: AsyncOpenAI) -> None:
            completion = await client.chat.completions.create(
                model="bonbon",
                messages=[{"role": "user", "content": REQUESTS[seed % len(REQUESTS)]}],
                max_tokens=32,
                seed=seed,
            )
            answered.append((completion.model_extra or {})["bonbon"]["group_id"])

        goal = len(answered) + count
        async with client_of(service) as client:
            asking = [asyncio.create_task(ask(100 * round_number + i, client)) for i in range(80)]
            while len(answered) < goal and not all(task.done() for task in asking):
                await asyncio.sleep(0.005)
            assert service.process is not None
            os.kill(service.process.pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert any(isinstance(outcome, OpenAIError) for outcome in outcomes), "it was killed after the traffic"
        assert await service.wait() == -signal.SIGKILL
        await service.start()
    async with open_database(database_url(environment)) as database:
        log = PairLog(database)
        for group_id in answered:
            group = await log.group(group_id)
            assert group is not None
            assert group.n == 4
            assert group.unclean is None


async def admin(service: ServiceProcess, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_promotions_and_rollback_under_traffic(
    service: ServiceProcess, environment: dict[str, str], tiny_models: TinyModels, tmp_path: Path
) -> None:
    first, second = [
        await register_adapter(environment, tiny_models.policy, tmp_path / f"adapter-{seed}", seed) for seed in (1, 2)
    ]
    stop = asyncio.Event()
    async with client_of(service) as client:
        traffic = Traffic(client)
        sending = asyncio.create_task(traffic.until(stop, REQUESTS, model="bonbon"))
        for version in (first, second):
            await approve(environment, version)
            await asyncio.sleep(0.5)
            assert (await admin(service, "/admin/promote", {"version": version}))["served"]
            assert (await traffic.ask(REQUESTS[0], model="bonbon", seed=0)).version == version
        assert (await admin(service, "/admin/rollback"))["champion"] == first
        assert (await traffic.ask(REQUESTS[0], model="bonbon", seed=0)).version == first
        await asyncio.sleep(0.5)
        stop.set()
        result: SwapTraffic = await sending
    assert result.failed == 0, result.errors
    assert result.requests > 20
    assert {first, second} <= set(result.versions)


async def test_a_corrupt_version_is_refused_and_the_champion_keeps_serving(
    service: ServiceProcess, environment: dict[str, str], tiny_models: TinyModels, tmp_path: Path
) -> None:
    name = await register_adapter(environment, tiny_models.policy, tmp_path / "adapter", 1)
    (weights,) = Path(environment["BONBON_DATA_DIR"]).glob("versions/*/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert await approve(environment, name) == weights.parent
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        response = await client.post("/admin/promote", json={"version": name})
    assert response.status_code == 409
    assert "adapter_model.safetensors" in response.json()["error"]["message"]
    async with client_of(service) as client:
        reply = await Traffic(client).ask(REQUESTS[0], model="bonbon", seed=0)
    assert reply.version == tiny_models.policy.name


async def test_sigterm_answers_what_is_in_flight_then_exits_0(service: ServiceProcess) -> None:
    async with client_of(service) as client:
        asking = [
            asyncio.create_task(Traffic(client).ask(request, model="bonbon", seed=seed))
            for seed, request in enumerate(REQUESTS[:8])
        ]
        await asyncio.sleep(0.2)
        assert service.process is not None
        service.process.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*asking)
    assert len(replies) == 8
    assert await service.wait() == 0
