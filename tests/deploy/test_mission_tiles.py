"""The dashboards' first tiles on a real Prometheus: two gateways, a promotion, another one, and a rollback."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from bonbon.pairs.group_records import Comparison
from bonbon.pairs.live.savings import TokenCounts, add_savings
from bonbon.pairs.pair_log import PairLog
from bonbon.registry.registry import Registry
from bonbon.store.database import Database, open_database
from tests.deploy.test_dashboards import GRAFANA, Prometheus
from tests.support.data.groups import scored_group
from tests.support.data.stores import sqlite
from tests.support.needs import needs_prometheus
from tests.support.service.fake_service import fake_service, started
from tests.support.service.running_service import BASE, new_version

A_LITTLE_WORSE, YES, BEST_OF_N = 1.0, 2.0, 3.0


def tiles() -> dict[str, dict[str, Any]]:
    """The queries of the tiles that both "Home" and "Win rate" begin with, and when a round last ended."""
    home, win_rate = (json.loads((GRAFANA / f"dashboards/{name}.json").read_text()) for name in ("home", "win-rate"))
    first = [panel["title"] for panel in home["panels"][:2]]
    assert first == [panel["title"] for panel in win_rate["panels"][:2]]
    assert first == ["As good as best-of-n?", "What do I save? Tokens, of best-of-n's"]
    (ended,) = (panel for panel in home["panels"] if panel["title"] == "Last round ended")
    assert ended["fieldConfig"]["defaults"]["noValue"] == "never"
    good, saved = home["panels"][:2]
    return {name: panel["targets"][0] for name, panel in (("good", good), ("saved", saved), ("ended", ended))}


async def shown(client: httpx2.AsyncClient) -> dict[str, list[float]]:
    """The values that each tile is given; a tile shows one."""
    values = {}
    for name, target in tiles().items():
        query = {"query": target["expr"].replace("$reward", ".*")}
        found = (await client.get("/api/v1/query", params=query)).json()["data"]["result"]
        values[name] = [round(float(series["value"][1]), 3) for series in found]
    return values


async def gateways(client: httpx2.AsyncClient) -> dict[str, int]:
    """The number of gateways that expose the live win rate of each champion."""
    query = {"query": 'count by (champion) (count by (champion, instance) (bonbon_win_rate{bound="value"}))'}
    found = (await client.get("/api/v1/query", params=query)).json()["data"]["result"]
    return {series["metric"]["champion"]: int(series["value"][1]) for series in found}


async def measured(database: Database, registry: Registry, weights: int, *, won: bool, saved: float) -> str:
    """A version that answers with one draw, with audits by two rewards and with what it has saved."""
    version = await new_version(registry, weights)
    await registry.approve(version.name, {"passed": True, "reasons": [], "k": 1})
    log = PairLog(database)
    await log.start()
    group = scored_group(weights, version=version.name)
    await log.append(group)
    for number in range(120):
        reward = float(number % 2) if won else 0.0
        for name, draw in (("fake", reward), ("kind", 1.0)):  # every version pleases the second reward
            comparison = Comparison(group.id, datetime.now(UTC), version.name, "best-of-4", name, "1", draw, 0.5, k=1)
            await log.append_comparison(comparison)
    await log.stop()
    tokens = round((1 - saved) * 1000)
    drawn = TokenCounts(answers=10, answer_tokens=tokens, audits=1, audit_tokens=0, best_of_n_tokens=100)
    await add_savings(database, version.name, 4, drawn)
    return version.name


@needs_prometheus
async def test_the_first_tiles_speak_of_the_champion_alone(tmp_path: Path) -> None:
    # 0: a version that best-of-n beats is to go on answering.
    services = [fake_service(tmp_path, registry_poll=0.1, win_rate_floor=0) for _ in range(2)]
    for number, service in enumerate(services):
        service.log = tmp_path / f"service-{number}.log"
    prometheus = Prometheus(tmp_path / "prometheus", *(service.url.removeprefix("http://") for service in services))
    async with started(services[0]), started(services[1]), prometheus.running() as client:

        async def until(good: float, saved: float) -> None:
            while (seen := await shown(client)) != {"good": [good], "saved": [saved], "ended": []}:
                print(seen)
                await asyncio.sleep(0.5)

        async with open_database(sqlite(tmp_path / "data")) as database:
            registry = Registry(database, tmp_path / "data" / "versions")
            await until(BEST_OF_N, 0.0)
            first = await measured(database, registry, 1, won=True, saved=0.4)
            second = await measured(database, registry, 2, won=False, saved=0.7)
            await registry.promote(first, actor="test")
            await until(YES, 0.4)
            await registry.promote(second, actor="test")
            await until(A_LITTLE_WORSE, 0.7)
            # Both gateways have both versions loaded now, and expose the live win rates of both.
            while (exposed := await gateways(client)) != {first: 2, second: 2}:
                print(exposed)
                await asyncio.sleep(0.5)
            await registry.rollback(actor="test")
            await until(YES, 0.4)
            await registry.promote(BASE, actor="test", force=True)
            await until(BEST_OF_N, 0.0)
