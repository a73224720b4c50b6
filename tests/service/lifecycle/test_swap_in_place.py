"""Full weights that replace the served ones: requests wait during the load, and none fails."""

import asyncio
from pathlib import Path

import pytest

from bonbon.engines.engine import VersionKind
from service.routing import router as serving
from tests.service.lifecycle.test_swap import Traffic, eventually
from tests.support.service.running_service import BASE, Running, WatchedEngine, new_version, running, settings_in

FULL = VersionKind.FULL


def pauses(service: Running) -> float:
    """Returns the number of pauses so far."""
    return service.state.metrics.registry.get_sample_value("bonbon_pause_duration_seconds_count") or 0.0


async def test_weights_are_replaced_under_traffic_without_a_failure(tmp_path: Path) -> None:
    engine = WatchedEngine(delay=0.002, one_place=True)
    async with running(settings_in(tmp_path), engine=engine) as service, Traffic(service) as traffic:
        await traffic.answers_of(BASE)
        first = await service.promoted(1, FULL)
        await traffic.answers_of(first.name)
        assert await engine.loaded() == {first.name}
        adapter = await service.promoted(2)
        await traffic.answers_of(adapter.name)
        assert await engine.loaded() == {first.name, adapter.name}  # an adapter needs no place
        second = await service.promoted(3, FULL)
        await traffic.answers_of(second.name)
        await service.state.registry.promote(BASE, actor="test", force=True)
        await traffic.answers_of(BASE)
    assert traffic.failures == []
    assert traffic.versions["streamed"] > 0
    assert engine.torn == []
    assert [name for event, name in engine.events if event == "load"][-1] == BASE
    assert pauses(service) == 3


async def test_what_has_lost_its_place_is_not_served(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, audit_fraction=1.0)
    async with running(settings, engine=WatchedEngine(one_place=True)) as service:
        version = await service.promoted(1, FULL)
        await eventually(lambda: service.state.router.champion == version.name)
        served = {model["id"] for model in (await service.client.get("/v1/models")).json()["data"]}
        base = await service.ask("base")
        audited = service.state.metrics.registry.get_sample_value
        assert (await service.ask()).json()["bonbon"]["version"] == version.name
        await service.state.audits.idle()
        assert audited("bonbon_audits_dropped_total", {"reason": "gone"}) == 1
    assert served == {"bonbon", "champion", version.name}
    assert base.status_code == 404
    assert base.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("fault", ["misfits", "nan"])
async def test_weights_that_cannot_be_served_give_the_place_back(tmp_path: Path, fault: str) -> None:
    """The weights either do not load, or load and generate nonsense."""
    engine = WatchedEngine(delay=0.002, one_place=True)
    async with running(settings_in(tmp_path), engine=engine) as service, Traffic(service) as traffic:
        good = await service.promoted(1, FULL)
        await traffic.answers_of(good.name)
        bad = await new_version(service.state.registry, 2, kind=FULL)
        getattr(engine, fault).add(bad.name)
        await service.state.registry.promote(bad.name, actor="test", force=True)
        await eventually(lambda: bad.name in service.state.swapper.refused)
        await traffic.answers_of(good.name)
        ready = (await service.client.get("/health/ready")).json()
    assert traffic.failures == []
    assert set(traffic.versions) == {BASE, "streamed", good.name}
    assert ready["serving"] == good.name
    assert bad.name in ready["refused"]


async def test_requests_that_do_not_end_keep_their_weights(tmp_path: Path) -> None:
    engine = WatchedEngine(delay=0.2, one_place=True)
    async with running(settings_in(tmp_path, drain_timeout=0.1), engine=engine) as service:
        asked = asyncio.create_task(service.ask(seed=4))
        await eventually(lambda: engine.running > 0)
        version = await service.promoted(1, FULL)
        await eventually(lambda: version.name in service.state.swapper.refused)
        assert "did not finish within 0.1 s" in service.state.swapper.refused[version.name].reason
        assert (await asked).status_code == 200
        assert await engine.loaded() == {BASE}


async def test_streams_that_wait_are_kept_alive_and_too_many_are_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path, ping_interval=0.05)
    async with running(settings, engine=WatchedEngine()) as service:
        gate = service.state.router
        async with gate.paused(1.0):
            waiting = asyncio.create_task(service.ask(stream=True))
            await eventually(lambda: gate.waiting == 1)
            await asyncio.sleep(0.2)
            monkeypatch.setattr(serving, "MAX_WAITING", 1)
            refused = await service.ask()
        streamed = await waiting
        assert gate.waiting == 0
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert streamed.text.count(": waiting for another version to load") >= 2
    assert "data: [DONE]" in streamed.text


async def test_a_client_that_hangs_up_while_it_waits_waits_no_more(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        gate = service.state.router
        async with gate.paused(1.0):
            waiting = [asyncio.create_task(service.ask(stream=stream)) for stream in (False, True)]
            await eventually(lambda: gate.waiting == 2)
            for task in waiting:
                task.cancel()
            await eventually(lambda: gate.waiting == 0)
