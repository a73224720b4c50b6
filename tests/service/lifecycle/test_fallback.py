"""The minimum live win rate, end to end: a reward that drifts, and two gateways on one database."""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.errors import Conflict
from bonbon.prompt import Prompt
from bonbon.registry.version_records import CHAMPION, PREVIOUS
from bonbon.rewards.fake_reward import FakeReward
from tests.support.service.running_service import BASE, Running, WatchedEngine, running, settings_in
from tests.support.until import until


class SigningEngine(WatchedEngine):
    """An engine in which every version except the base begins its answers with its name."""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        signed: set[int] = set()
        async for event in super().draw(request):
            if isinstance(event, Delta) and request.version != BASE and event.index not in signed:
                signed.add(event.index)
                event = replace(event, text=f"{request.version}: {event.text}")
            yield event


@dataclass
class Drifting:
    """A reward that scores at random and adds a number of standard deviations for each version's answers."""

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
    """Starts a gateway on the shared database that audits every answer."""
    async with AsyncExitStack() as stack:

        async def start(n: int = 4, **service: Any) -> Running:
            settings = settings_in(tmp_path, audit_fraction=1.0, **service).model_copy(update={"n": n})
            reward = FakeReward(function=drifting)
            return await stack.enter_async_context(running(settings, engine=SigningEngine(), reward=reward))

        yield start


async def audited(service: Running, answers: int) -> None:
    for _ in range(answers):
        assert (await service.ask()).status_code == 200
    await service.state.audits.idle()


async def promote(service: Running, weights: int) -> str:
    name = (await service.promoted(weights)).name
    await service.state.swapper.converge()
    return name


async def win_rates(service: Running) -> dict[str, Any]:
    body: dict[str, Any] = (await service.client.get("/admin/win-rate")).json()
    return body


async def test_a_drifting_reward_brings_best_of_n_back_everywhere(gateway: Gateway, drifting: Drifting) -> None:
    one, two = await gateway(), await gateway()
    first = await promote(one, 1)
    drifting.bonus[first] = 6.0
    await audited(one, 60)
    second = await promote(one, 2)
    await two.state.swapper.converge()
    drifting.bonus[second] = 6.0
    for service in (one, two):
        await audited(service, 20)
        answer = (await service.ask()).json()["bonbon"]
        assert (answer["version"], answer["n"]) == (second, 1)
    shown = await win_rates(two)
    assert (shown["champion"], shown["best_of_n"], shown["floor"], shown["fallback"]) == (second, False, 0.45, None)
    assert shown["floor_opponent"] == "best-of-4"
    live = next(live for live in shown["win_rates"] if (live["version"], live["opponent"]) == (second, "best-of-4"))
    assert live["wins"] + live["ties"] + live["losses"] == live["recent"] >= 40  # of both gateways
    assert live["low"] < live["win_rate"] <= live["high"]
    assert live["win_rate"] > 0.9
    assert not live["below_floor"]

    drifting.bonus[second] = -3.0  # nobody touches the service: what the reward likes has changed
    while one.state.router.champion == second:
        await audited(one, 10)
    # The last version known to be good, with best-of-n, in both gateways.
    await until(lambda: two.state.router.champion == first)
    for service in (one, two):
        answer = (await service.ask()).json()["bonbon"]
        assert (answer["version"], answer["n"]) == (first, 4)
    shown = await win_rates(two)
    assert (shown["champion"], shown["best_of_n"]) == (first, True)
    assert (shown["fallback"]["version"], shown["fallback"]["replaced"]) == (first, second)
    assert f"best-of-2 of {second} won" in shown["fallback"]["reason"]
    event, before = await one.state.registry.history(2)
    assert (event.kind, event.version, event.actor) == ("fell_back", first, "win-rate fallback")
    assert event.detail["replaced"] == second
    assert (before.kind, before.version, before.detail["k"], before.detail["before"]) == ("raised_k", second, 2, 1)
    scrapes = [(await service.client.get("/metrics")).text for service in (one, two)]
    assert sum("bonbon_fallbacks_total 1.0" in scrape for scrape in scrapes) == 1

    assert all("bonbon_fallen_back 1.0" in scrape for scrape in scrapes)

    drifting.bonus[first] = -3.0  # what it answers is audited on; the base owes nothing to training
    while one.state.router.champion == first:
        await audited(one, 10)
    answer = (await one.ask()).json()["bonbon"]
    assert (answer["version"], answer["n"]) == (BASE, 4)

    third = await promote(one, 3)  # a promotion ends it
    assert (await one.ask()).json()["bonbon"]["n"] == 1
    assert not (await win_rates(one))["best_of_n"]
    assert (await one.state.registry.aliases()) == {CHAMPION: third, PREVIOUS: BASE}


async def test_a_drifting_reward_makes_k_rise_and_a_better_version_makes_it_fall(
    gateway: Gateway, drifting: Drifting
) -> None:
    one, two = await gateway(8), await gateway(8)
    name = (await one.promoted(1, k=1)).name
    await one.state.swapper.converge()
    drifting.bonus[name] = 3.0
    await audited(one, 30)
    assert one.state.router.k == 1

    drifting.bonus[name] = 0.3  # the best of 4 draws is about as good as best-of-8 of the base now, 2 are not enough
    seen = [1]
    while seen[-1] < 4:
        await audited(one, 10)
        if one.state.router.k != seen[-1]:
            seen.append(one.state.router.k)
    assert seen == [1, 2, 4]
    await audited(one, 60)
    assert (one.state.router.champion, one.state.router.k) == (name, 4)
    await until(lambda: two.state.router.k == 4)
    answer = (await two.ask()).json()["bonbon"]
    assert (answer["version"], answer["n"]) == (name, 4)
    shown = await win_rates(two)
    assert (shown["k"], shown["best_of_n"], shown["fallback"]) == (4, False, None)
    assert {live["k"] for live in shown["win_rates"]} == {1, 2, 4}
    events = [event for event in await one.state.registry.history() if event.kind == "raised_k"]
    assert [(event.detail["before"], event.detail["k"]) for event in events] == [(2, 4), (1, 2)]
    assert "bonbon_k_raised_total 2.0" in (await one.client.get("/metrics")).text

    better = (await one.promoted(2, k=1)).name
    drifting.bonus[better] = 3.0
    await one.state.swapper.converge()
    await audited(one, 30)
    assert (one.state.router.champion, one.state.router.k) == (better, 1)


async def test_where_a_setting_fixes_k_only_answers_worse_than_the_base_bring_best_of_n_back(
    gateway: Gateway, drifting: Drifting
) -> None:
    service = await gateway(k=1)
    name = await promote(service, 1)
    drifting.bonus[name] = 0.3  # better than the base, and much worse than best-of-4 of it
    await audited(service, 60)
    assert (service.state.router.champion, service.state.router.k) == (name, 1)
    shown = await win_rates(service)
    assert (shown["floor"], shown["floor_opponent"]) == (0.5, BASE)
    drifting.bonus[name] = -3.0
    while service.state.router.champion == name:
        await audited(service, 10)
    assert (await service.ask()).json()["bonbon"]["n"] == 4


async def test_an_operator_may_promote_the_champion_anew_with_the_draws_of_its_verdict(gateway: Gateway) -> None:
    service = await gateway()
    name = (await service.promoted(1, k=1)).name
    registry = service.state.registry
    await registry.raise_k(name, 2, actor="test", reason="to see")
    await service.state.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 2
    for refused, k in ((name, 2), (BASE, 4)):
        with pytest.raises(Conflict):
            await registry.raise_k(refused, k, actor="test", reason="to see")
    await registry.promote(name)
    await service.state.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 1


async def test_draws_that_were_raised_are_told_only_while_they_answer(gateway: Gateway) -> None:
    service = await gateway()
    name = (await service.promoted(1, k=1)).name
    await service.state.registry.raise_k(name, 2, actor="test", reason="to see")
    await service.state.swapper.converge()
    fixed = await gateway(k=1)
    assert "bonbon_champion_k_raised 1.0" in (await service.client.get("/metrics")).text
    assert "bonbon_champion_k_raised 0.0" in (await fixed.client.get("/metrics")).text
    assert "bonbon_win_rate_floor 0.45" in (await service.client.get("/metrics")).text
    assert "bonbon_win_rate_floor 0.5" in (await fixed.client.get("/metrics")).text
    second = (await service.promoted(2, k=1)).name
    await service.state.registry.fall_back(second, name, actor="test", reason="to see")
    await service.state.swapper.converge()
    assert "bonbon_champion_k_raised 0.0" in (await service.client.get("/metrics")).text


async def test_a_restart_neither_forgets_the_counts_nor_the_fallback(
    tmp_path: Path, drifting: Drifting, gateway: Gateway
) -> None:
    settings, reward = settings_in(tmp_path, audit_fraction=1.0), FakeReward(function=drifting)
    async with running(settings, engine=SigningEngine(), reward=reward) as service:
        champion = await promote(service, 1)
        drifting.bonus[champion] = -3.0
        await audited(service, 8)  # too few to tell
        assert service.state.router.champion == champion
    service = await gateway()
    assert (await win_rates(service))["win_rates"][0]["recent"] == 8
    while service.state.router.champion == champion:
        await audited(service, 5)
    again = await gateway()
    answer = (await again.ask()).json()["bonbon"]
    assert (answer["version"], answer["n"]) == (BASE, 4)
    assert (await win_rates(again))["best_of_n"]


async def test_an_operator_may_take_the_champion_back(gateway: Gateway, drifting: Drifting) -> None:
    """A promotion and a rollback both end the fallback, and a version that is promoted again samples one candidate."""
    service = await gateway()
    name = await promote(service, 1)
    await service.state.registry.fall_back(name, BASE, actor="test", reason="to see")
    await service.state.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 4
    await service.state.registry.rollback()
    await service.state.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 1
    later = await promote(service, 2)
    await service.state.registry.fall_back(later, name, actor="test", reason="to see")
    await service.state.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 4
    await service.state.registry.promote(name)
    await service.state.swapper.converge()
    assert (await service.ask()).json()["bonbon"]["n"] == 1
    assert (await service.state.registry.aliases())[PREVIOUS] == later


async def test_a_floor_of_zero_never_acts(gateway: Gateway, drifting: Drifting) -> None:
    service = await gateway(win_rate_floor=0)
    name = await promote(service, 1)
    drifting.bonus[name] = -3.0
    await audited(service, 60)
    live = next(live for live in (await win_rates(service))["win_rates"] if live["opponent"] == "best-of-4")
    assert live["high"] < 0.45
    assert service.state.router.champion == name
