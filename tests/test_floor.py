"""The floor under the live win rate, end to end: a reward that drifts, two gateways on one database."""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from running_service import BASE, Running, WatchedEngine, running, settings_in
from until import until

from bonbon.engines.base import Delta, DrawRequest, Started
from bonbon.prompt import Prompt
from bonbon.registry.records import CHAMPION, PREVIOUS
from bonbon.rewards.fake import FakeReward


class SigningEngine(WatchedEngine):
    """Every version but the base begins its answers with its own name."""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        signed: set[int] = set()
        async for event in super().draw(request):
            if isinstance(event, Delta) and request.version != BASE and event.index not in signed:
                signed.add(event.index)
                event = replace(event, text=f"{request.version}: {event.text}")
            yield event


@dataclass
class Drifting:
    """Scores chance, and three standard deviations more or less for what a version has signed."""

    bonus: dict[str, float] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def __call__(self, prompt: Prompt, text: str) -> float:
        return self.rng.gauss(self.bonus.get(text.partition(":")[0], 0.0), 1.0)


@pytest.fixture
def drifting() -> Drifting:
    return Drifting()


Gateway = Callable[..., Any]


@pytest.fixture
async def gateway(tmp_path: Path, drifting: Drifting) -> AsyncIterator[Gateway]:
    """Starts a gateway on the one database, every answer of which is audited."""
    async with AsyncExitStack() as stack:

        async def start(**service: Any) -> Running:
            settings = settings_in(tmp_path, audit_fraction=1.0, **service)
            reward = FakeReward(function=drifting)
            return await stack.enter_async_context(running(settings, engine=SigningEngine(), reward=reward))

        yield start


async def audited(service: Running, answers: int) -> None:
    for _ in range(answers):
        assert (await service.ask()).status_code == 200
    await service.parts.audits.idle()


async def promote(service: Running, weights: int) -> str:
    name = (await service.promoted(weights)).name
    await service.parts.swapper.converge()
    return name


async def win_rates(service: Running) -> dict[str, Any]:
    body: dict[str, Any] = (await service.client.get("/admin/win-rate")).json()
    return body


async def test_a_drifting_reward_brings_best_of_n_back_everywhere(gateway: Gateway, drifting: Drifting) -> None:
    one, two = await gateway(), await gateway()
    first = await promote(one, 1)
    drifting.bonus[first] = 3.0
    await audited(one, 60)
    second = await promote(one, 2)
    await two.parts.swapper.converge()
    drifting.bonus[second] = 3.0
    for service in (one, two):
        await audited(service, 20)
        answer = (await service.ask()).json()["bonbon"]
        assert (answer["version"], answer["n"]) == (second, 1)
    shown = await win_rates(two)
    assert (shown["champion"], shown["best_of_n"], shown["floor"], shown["fallback"]) == (second, False, 0.5, None)
    live = next(live for live in shown["win_rates"] if (live["version"], live["opponent"]) == (second, BASE))
    assert live["wins"] + live["ties"] + live["losses"] == live["recent"] >= 40  # of both gateways
    assert live["low"] < live["win_rate"] <= live["high"]
    assert live["win_rate"] > 0.9
    assert not live["below_floor"]

    drifting.bonus[second] = -3.0  # nobody touches the service: what the reward likes has changed
    while one.parts.serving.champion == second:
        await audited(one, 10)
    # The last version known to be good, with best-of-n, in both gateways.
    await until(lambda: two.parts.serving.champion == first)
    for service in (one, two):
        answer = (await service.ask()).json()["bonbon"]
        assert (answer["version"], answer["n"]) == (first, 4)
    shown = await win_rates(two)
    assert (shown["champion"], shown["best_of_n"]) == (first, True)
    assert (shown["fallback"]["version"], shown["fallback"]["replaced"]) == (first, second)
    assert f"{second} won" in shown["fallback"]["reason"]
    [event] = await one.parts.registry.history(1)
    assert (event.kind, event.version, event.actor) == ("fell_back", first, "win-rate floor")
    assert event.detail["replaced"] == second
    scrapes = [(await service.client.get("/metrics")).text for service in (one, two)]
    assert sum("bonbon_fallbacks_total 1.0" in scrape for scrape in scrapes) == 1

    assert all("bonbon_fallen_back 1.0" in scrape for scrape in scrapes)

    drifting.bonus[first] = -3.0  # its single draws are audited on; the base owes nothing to training
    while one.parts.serving.champion == first:
        await audited(one, 10)
    answer = (await one.ask()).json()["bonbon"]
    assert (answer["version"], answer["n"]) == (BASE, 4)

    third = await promote(one, 3)  # a promotion ends it
    assert (await one.ask()).json()["bonbon"]["n"] == 1
    assert not (await win_rates(one))["best_of_n"]
    assert (await one.parts.registry.aliases()) == {CHAMPION: third, PREVIOUS: BASE}


async def test_a_restart_neither_forgets_the_counts_nor_the_fallback(
    tmp_path: Path, drifting: Drifting, gateway: Gateway
) -> None:
    settings, reward = settings_in(tmp_path, audit_fraction=1.0), FakeReward(function=drifting)
    async with running(settings, engine=SigningEngine(), reward=reward) as service:
        champion = await promote(service, 1)
        drifting.bonus[champion] = -3.0
        await audited(service, 8)  # too few to tell
        assert service.parts.serving.champion == champion
    service = await gateway()
    assert (await win_rates(service))["win_rates"][0]["recent"] == 8
    while service.parts.serving.champion == champion:
        await audited(service, 5)
    again = await gateway()
    answer = (await again.ask()).json()["bonbon"]
    assert (answer["version"], answer["n"]) == (BASE, 4)
    assert (await win_rates(again))["best_of_n"]


async def test_an_operator_may_take_the_champion_back(gateway: Gateway, drifting: Drifting) -> None:
    """By a promotion as by a rollback; and what an operator promotes anew answers with one draw again."""
    service = await gateway()
    name = await promote(service, 1)
    await service.parts.registry.fall_back(name, BASE, actor="test", reason="to see")
    await service.parts.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 4
    await service.parts.registry.rollback()
    await service.parts.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 1
    later = await promote(service, 2)
    await service.parts.registry.fall_back(later, name, actor="test", reason="to see")
    await service.parts.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 4
    await service.parts.registry.promote(name)
    await service.parts.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 1
    assert (await service.parts.registry.aliases())[PREVIOUS] == later


async def test_a_floor_of_zero_never_acts(gateway: Gateway, drifting: Drifting) -> None:
    service = await gateway(win_rate_floor=0)
    name = await promote(service, 1)
    drifting.bonus[name] = -3.0
    await audited(service, 60)
    live = next(live for live in (await win_rates(service))["win_rates"] if live["opponent"] == BASE)
    assert live["high"] < 0.5
    assert service.parts.serving.champion == name
