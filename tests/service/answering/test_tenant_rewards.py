"""Tenants with their own rewards, over HTTP: the reward ranks their candidates and affects nobody else."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import Response

from bonbon.errors import UserError
from bonbon.pairs.reading.snapshot import Fractions, read_rows, take_snapshot
from bonbon.prompt import Prompt
from bonbon.registry.next_round import next_round
from bonbon.rewards.fake_reward import digest_score
from bonbon.settings import Limits, ServiceSettings, Tenant, load_settings
from service.app import create_app
from tests.support.servers.scripted_server import lengths, serving
from tests.support.service.fake_service import CHAT, new_key, rows
from tests.support.service.running_service import BASE, Running, WatchedEngine, running, settings_in
from tests.support.until import until

STRICT = {"rewards": {"strict": {"kind": "fake", "salt": "strict"}}, "tenants": {"ada": {"reward": "strict"}}}
PROMPT = Prompt.user("Where is my order?")


class Tenants:
    """Runs a service for two tenants: `ada` has her own reward, `bob` uses the service's."""

    def __init__(self, directory: Path, service: Running, keys: dict[str, str]) -> None:
        self.directory, self.service, self._keys = directory, service, keys

    async def get(self, tenant: str, path: str) -> httpx2.Response:
        return await self.service.client.get(path, headers=self._headers(tenant))

    async def ask(self, tenant: str, **fields: Any) -> dict[str, Any]:
        response = await self.post(tenant, **fields)
        assert response.status_code == 200, response.text
        told: dict[str, Any] = response.json()["bonbon"]
        return told

    async def post(self, tenant: str, **fields: Any) -> httpx2.Response:
        body = {"model": "bonbon", "messages": list(PROMPT.messages or ()), "max_tokens": 12} | fields
        return await self.service.client.post(CHAT, json=body, headers=self._headers(tenant))

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return rows(self.directory, query, *values)

    def _headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._keys[tenant]}"}


@asynccontextmanager
async def two_tenants(directory: Path, *, retry: float = 5.0, **service: Any) -> AsyncIterator[Tenants]:
    """Runs a service. `retry` is the number of seconds until a failed start is retried; `service` are its settings."""
    keys = {
        name: new_key(directory, name, "--tenant", name, "--scope", "complete", "--scope", "export")[1]
        for name in ("ada", "bob")
    }
    settings = settings_in(directory / "data", **(STRICT | service))
    async with running(settings, engine=WatchedEngine(), retry=retry) as started:
        yield Tenants(directory, started, keys)


@pytest.mark.parametrize(
    ("tenant", "reward", "salt", "unclean"), [("ada", "strict", "strict", "reward"), ("bob", "fake", "", None)]
)
async def test_the_best_by_the_tenants_own_reward_answers(
    tmp_path: Path, tenant: str, reward: str, salt: str, unclean: str | None
) -> None:
    async with two_tenants(tmp_path) as tenants:
        told = await tenants.ask(tenant, seed=1)
        scrape = (await tenants.service.client.get("/metrics")).text
    found = tenants.rows(
        "SELECT text, reward, served, reward_name, unclean FROM candidates JOIN groups ON groups.id = group_id "
        "WHERE group_id = ?",
        told["group_id"],
    )
    assert len(found) == 4
    assert all(score == digest_score(PROMPT, salt + text) for text, score, *_ in found)
    assert [score for _, score, served, *_ in found if served] == [max(score for _, score, *_ in found)]
    assert {(name, why) for *_, name, why in found} == {(reward, unclean)}
    assert f'bonbon_reward_best_minus_first_count{{reward="{reward}"}} 1.0' in scrape
    assert f'bonbon_groups_logged_total{{origin="request",unclean="{unclean or ""}"}} 1.0' in scrape
    assert tenant not in scrape


async def test_what_all_others_have_learnt_does_not_answer_them(tmp_path: Path) -> None:
    """The champion has learned the service's reward, so a tenant with another reward gets best-of-n of the base and no
    audits."""
    async with two_tenants(tmp_path, audit_fraction=1.0) as tenants:
        champion = (await tenants.service.promoted(1)).name
        await tenants.service.state.swapper.converge()
        ada, bob = await tenants.ask("ada"), await tenants.ask("bob")
        named = await tenants.ask("ada", model=champion), await tenants.ask("ada", model="champion")
        await tenants.service.state.audits.idle()
    assert (ada["version"], ada["n"]) == (BASE, 4)
    assert [(told["version"], told["n"]) for told in (bob, *named)] == [(champion, 1)] * 3
    compared = tenants.rows("SELECT DISTINCT reward_name, group_id FROM comparisons")
    assert compared == [("fake", bob["group_id"])]
    assert tenants.rows("SELECT tenant, reward_name FROM groups WHERE origin = 'audit'") == [("bob", "fake")]
    assert tenants.rows("SELECT DISTINCT reward_name FROM win_rates") == [("fake",)]


async def test_only_groups_of_the_services_reward_are_trained_on(tmp_path: Path) -> None:
    """They do not block training either, although they are the newest groups and belong to a second tenant."""
    async with two_tenants(tmp_path) as tenants:
        bobs = {(await tenants.ask("bob", seed=seed))["group_id"] for seed in range(4)}
        adas = {(await tenants.ask("ada", seed=seed))["group_id"] for seed in range(6)}
        registry, settings = tenants.service.state.registry, tenants.service.state.settings
        assert (await next_round(registry, await registry.get(BASE), settings)).groups == len(bobs)
        snapshot = await take_snapshot(
            registry.database, tmp_path / "snapshot", version=BASE, fractions=Fractions(test=0.1, validation=0.1)
        )
        assert (snapshot.reward_name, snapshot.other_rewards) == ("fake", 0)
        assert {row["group_id"] for row in read_rows(snapshot)} == bobs
        for tenant, own in (("ada", adas), ("bob", bobs)):
            exported = [json.loads(line) for line in (await tenants.get(tenant, "/v1/pairs")).text.splitlines()]
            assert {pair["group_id"] for pair in exported} == own
            assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in exported)


async def test_a_reward_that_fails_degrades_its_own_tenants_only(tmp_path: Path) -> None:
    """Only this reward's circuit breaker opens."""
    with serving(lengths) as server:
        dying = {"strict": {"kind": "http", "target": server.url, "attempts": 1, "breaker_failures": 2}}
        async with two_tenants(tmp_path, rewards=dying) as tenants:
            server.answers[:] = [Response(status_code=500)]
            told = [await tenants.ask(tenant) for tenant in ("ada", "bob") * 4]
            scrape = (await tenants.service.client.get("/metrics")).text
    assert [one["degraded"] for one in told] == [True, False] * 4
    reasons = tenants.rows("SELECT degraded FROM groups WHERE tenant = 'ada' ORDER BY id")
    assert ["failed too often" in reason for (reason,) in reasons] == [False, False, True, True]
    assert tenants.rows("SELECT DISTINCT unclean, reward_name FROM groups WHERE tenant = 'ada'") == [
        ("degraded", "strict")
    ]
    assert 'bonbon_degraded_total{origin="request",reason="failed",reward="strict"} 4.0' in scrape
    assert 'reward="fake"' not in "".join(line for line in scrape.splitlines() if "degraded_total" in line)


async def test_a_reward_that_is_dead_at_the_start_keeps_its_own_tenants_waiting_only(tmp_path: Path) -> None:
    """Its tenants get an error and nothing is generated for them; when the reward can score, they get answers."""
    with serving(Response(status_code=500)) as server:
        dead = {"strict": {"kind": "http", "target": server.url, "attempts": 1}}
        async with two_tenants(tmp_path, retry=0.01, rewards=dead) as tenants:
            assert (await tenants.service.client.get("/health/ready")).status_code == 200
            refused = await tenants.post("ada")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert "the reward 'strict' of this tenant cannot score yet" in refused.json()["error"]["message"]
            assert not (await tenants.ask("bob"))["degraded"]
            server.answers[:] = [lengths]
            await until(lambda: not tenants.service.state.tenant_rewards.failures)
            assert not (await tenants.ask("ada"))["degraded"]
    assert tenants.rows("SELECT DISTINCT tenant FROM groups WHERE degraded IS NOT NULL") == []


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ({"tenants": {"ada": {"reward": "strict"}}}, "tenants.ada.reward is 'strict'.* known rewards are: none"),
        ({"rewards": {"a": "fake:"}, "tenants": {"ada": {"reward": "b"}}}, "known rewards are: 'a'"),
        ({"rewards": {"fake": "fake:"}}, "service.rewards contains 'fake'.*choose another name"),
        ({"rewards": {"x": "telepathy:"}}, "reward kind 'telepathy' is unknown"),
    ],
)
def test_rewards_that_cannot_be_told_apart_or_found_are_refused(
    tmp_path: Path, service: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        create_app(load_settings(engine="fake", data_dir=tmp_path, service=service))


def test_a_limit_that_a_tenant_does_not_name_is_everybodys() -> None:
    everybody = Limits(requests_per_minute=10, tokens_per_minute=1000)
    told = {"ada": {"reward": "strict"}, "bob": {"requests_per_minute": None, "tokens_per_minute": 5}}
    settings = ServiceSettings.model_validate({"rewards": {"strict": "fake:"}, "tenants": told})
    limits = {name: own.limits(everybody) for name, own in settings.tenants.items()}
    assert limits == {"ada": everybody, "bob": Limits(requests_per_minute=None, tokens_per_minute=5)}
    assert Tenant().limits(everybody) == everybody
