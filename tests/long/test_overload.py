"""Tests of the running service under overload: it refuses requests with a time to retry, and serves tenants fairly."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx2

from bonbon.demo.service_process import ServiceProcess
from tests.support.service.fake_service import BODY, CHAT, client_of, fake_service, new_key, started

SLOW = '{"delay": 0.02}'


def slow_service(directory: Path, **settings: object) -> ServiceProcess:
    service = fake_service(directory, **settings)
    service.environment["BONBON_ENGINE_OPTIONS"] = SLOW
    return service


async def test_a_tenant_that_asks_too_much_is_told_when_to_come_back(tmp_path: Path) -> None:
    greedy, modest = (new_key(tmp_path, name, "--tenant", name)[1] for name in ("greedy", "modest"))
    tenants = json.dumps({"greedy": {"requests_per_minute": 5, "tokens_per_minute": 1000}})
    async with started(fake_service(tmp_path, tenants=tenants)) as service:
        async with client_of(service, greedy) as client:
            answers = [await client.post(CHAT, json=BODY) for _ in range(6)]
            statuses = [answer.status_code for answer in answers]
            assert statuses == [200] * 5 + [429]
            drawn = sum(answer.json()["bonbon"]["tokens_drawn"] for answer in answers[:5])
            # The unused part of the charge is given back; meanwhile the bucket refills by 17 tokens per second.
            assert 1000 - drawn <= int(answers[4].headers["x-ratelimit-remaining-tokens"]) <= 1000
            assert answers[4].headers["x-ratelimit-remaining-requests"] == "0"
            error = answers[5].json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert 1 <= int(answers[5].headers["retry-after"]) <= 12
            streamed = await client.post(CHAT, json=BODY | {"stream": True})
            assert streamed.status_code == 429
        async with client_of(service, modest) as client:
            answer = await client.post(CHAT, json=BODY | {"stream": True})
            assert answer.status_code == 200
            assert not any(name.startswith("x-ratelimit") for name in answer.headers)


async def test_what_is_over_capacity_waits_and_what_is_over_the_queue_is_refused(tmp_path: Path) -> None:
    """Admits 2 requests of 4 candidates and 12 tokens each, 5 may wait."""
    limited = slow_service(tmp_path, max_tokens_in_flight=96, max_waiting=5)
    async with started(limited) as service, client_of(service) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=BODY | {"seed": 1}) for _ in range(30)))
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses[200] >= 7
        assert statuses == {200: statuses[200], 503: 30 - statuses[200]}
        assert statuses[503] >= 10
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.json()["error"]["code"] == "overloaded"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        # Afterwards the service accepts requests again.
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert "bonbon_tokens_in_flight 0.0" in metrics
        assert "bonbon_requests_waiting 0.0" in metrics


async def test_a_flood_of_one_tenant_does_not_starve_another(tmp_path: Path) -> None:
    flooding, other = (new_key(tmp_path, name, "--tenant", name)[1] for name in ("flooding", "other"))
    limited = slow_service(tmp_path, max_tokens_in_flight=48, max_waiting=100)
    async with started(limited) as service, client_of(service, flooding) as flood, client_of(service, other) as client:
        done: list[str] = []

        async def ask(client: httpx2.AsyncClient, name: str) -> None:
            assert (await client.post(CHAT, json=BODY | {"seed": 1})).status_code == 200
            done.append(name)

        asking = [asyncio.create_task(ask(flood, "flooding")) for _ in range(30)]
        while not done:
            await asyncio.sleep(0.005)
        before = len(done)
        await ask(client, "other")
        # One or two were inside already, and as many end while the answer is on its way.
        assert len(done) - before <= 6
        await asyncio.gather(*asking)
