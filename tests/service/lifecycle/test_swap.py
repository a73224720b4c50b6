"""Swaps under traffic: refused, rolled back, overtaken, interrupted and restarted."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import Conflict
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Target
from bonbon.store.database import Database
from bonbon.store.tables import aliases, version_numbers, versions
from service.lifecycle import swap
from service.lifecycle.swap import Swapper
from tests.support.service.running_service import BASE, Running, WatchedEngine, new_version, running, settings_in
from tests.support.until import until

eventually = partial(until, seconds=10.0)


class Traffic:
    """Clients that send requests until they are stopped, some for complete answers and some for streams."""

    def __init__(self, service: Running, workers: int = 8) -> None:
        self.service, self.workers = service, workers
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []

    async def __aenter__(self) -> "Traffic":
        self._tasks = [asyncio.create_task(self._work(stream=worker % 4 == 0)) for worker in range(self.workers)]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answers_of(self, version: str, count: int = 10) -> None:
        """Until `version` has answered `count` times more."""
        wanted = self.versions[version] + count
        await eventually(lambda: self.versions[version] >= wanted or bool(self.failures))

    async def _work(self, *, stream: bool) -> None:
        while True:
            response = await self.service.ask(stream=stream)
            if response.status_code != 200 or (stream and "data: [DONE]" not in response.text):
                self.failures.append(f"{response.status_code} {response.text[:300]}")
            elif stream:
                self.versions["streamed"] += 1
            else:
                self.versions[response.json()["bonbon"]["version"]] += 1


async def test_the_alias_draws_as_many_candidates_as_the_champion_needs_and_loses_no_request_as_they_change(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path)
    drawn: list[int] = []
    async with running(settings, engine=FakeEngine(BASE, delay=0.002)) as service, Traffic(service) as traffic:
        for weights, k in enumerate((3, 2, 1), start=1):
            version = await service.promoted(weights, k=k)
            await traffic.answers_of(version.name)
            answer = (await service.ask()).json()["bonbon"]
            assert answer["version"] == version.name
            drawn.append(answer["n"])
            metrics = (await service.client.get("/metrics")).text
            assert f"bonbon_k {float(k)}" in metrics
        for raised in (2, 3):
            await service.state.registry.raise_k(version.name, raised, actor="test", reason="to see")
            await eventually(lambda: service.state.router.k > drawn[-1])
            drawn.append((await service.ask()).json()["bonbon"]["n"])
    assert traffic.failures == []
    assert drawn == [3, 2, 1, 2, 3]


async def test_versions_swap_under_traffic_without_a_failure(tmp_path: Path) -> None:
    engine = WatchedEngine(delay=0.002)
    async with running(settings_in(tmp_path), engine=engine) as service, Traffic(service) as traffic:
        await traffic.answers_of(BASE)
        names = []
        for weights in range(1, 5):
            version = await service.promoted(weights)
            names.append(version.name)
            await traffic.answers_of(version.name)
        await service.state.registry.rollback()
        await traffic.answers_of(names[2])
        await eventually(lambda: not service.state.swapper.draining)
        loaded = await engine.loaded()
    assert traffic.failures == []
    assert traffic.versions["streamed"] > 0
    assert set(traffic.versions) == {BASE, "streamed", *names}
    assert engine.torn == []
    assert loaded == {BASE, names[2], names[3]}
    assert [name for event, name in engine.events if event == "load"] == names
    assert [name for event, name in engine.events if event == "unload"] == names[:2]


async def test_an_old_version_is_unloaded_only_when_its_last_stream_has_ended(tmp_path: Path) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        first = await service.promoted(1)
        await eventually(lambda: service.state.router.champion == first.name)
        with service.state.router.route("bonbon") as plan:
            assert plan.version == first.name
            for weights in (2, 3):
                version = await service.promoted(weights)
                await eventually(lambda version=version: service.state.router.champion == version.name)  # type: ignore[misc]
            await eventually(lambda: service.state.swapper.draining == {first.name})
            await asyncio.sleep(0.05)
            assert first.name in await engine.loaded()
            assert (await service.ask(first.name)).status_code == 404
        await eventually(lambda: ("unload", first.name) in engine.events)
        assert service.state.swapper.draining == frozenset()


async def test_a_draining_version_that_is_promoted_again_stays(tmp_path: Path) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        state = service.state
        first = await service.promoted(1)
        await eventually(lambda: state.router.champion == first.name)
        with state.router.hold(first.name):
            for weights in (2, 3):
                await service.promoted(weights)
                await state.swapper.converge()
            assert state.swapper.draining == {first.name}
            await state.registry.promote(first.name, force=True)
            await eventually(lambda: state.router.champion == first.name)
        await eventually(lambda: first.name not in state.swapper.draining)
        assert ("unload", first.name) not in engine.events
        assert (await service.ask()).json()["bonbon"]["version"] == first.name


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_cut_off_at_any_step_lets_its_version_go(tmp_path: Path, stream: bool) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        for steps in range(40):
            request = asyncio.create_task(service.ask(stream=stream))
            for _ in range(steps):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            assert service.state.router.in_flight == 0, f"held after {steps} steps"
        assert engine.running == 0


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda engine, name, file: flip_byte(file), "adapter_model.safetensors is corrupt"),
        (lambda engine, name, file: truncate(file), "truncated"),
        (lambda engine, name, file: file.with_name("adapter_config.json").unlink(), "missing"),
        (lambda engine, name, file: file.with_name("extra.json").write_text("{}"), "not in the manifest"),
        (lambda engine, name, file: engine.nan.add(name), "log-probabilities that are not finite"),
        (lambda engine, name, file: engine.silent.add(name), "was not answered"),
        (lambda engine, name, file: engine.misfits.add(name), "do not fit the base"),
    ],
    ids=["flipped byte", "truncated", "missing file", "extra file", "nan", "no tokens", "misfit"],
)
async def test_a_bad_version_is_refused_and_the_champion_keeps_serving(
    tmp_path: Path, harm: Callable[[WatchedEngine, str, Path], object], reason: str
) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service, Traffic(service, workers=3) as traffic:
        good = await service.promoted(1)
        await traffic.answers_of(good.name)
        bad = await new_version(service.state.registry, 2)
        harm(engine, bad.name, bad.directory / "adapter_model.safetensors")
        await service.state.registry.promote(bad.name, force=True)
        await eventually(lambda: bad.name in service.state.swapper.refused)
        await traffic.answers_of(good.name)
        aliases = (await service.client.get("/admin/aliases")).json()
        health = await service.client.get("/health/ready")
        scrape = (await service.client.get("/metrics")).text
        await eventually(lambda: not service.state.swapper.draining)
        loaded = await engine.loaded()
        history = await service.state.registry.history(5)
    assert traffic.failures == []
    assert bad.name not in traffic.versions
    assert bad.name not in loaded
    assert reason in aliases["refused"][bad.name]
    assert (aliases["aliases"]["champion"], aliases["serving"]["bonbon"]) == (bad.name, good.name)
    assert health.status_code == 200
    assert (health.json()["champion"], health.json()["serving"]) == (bad.name, good.name)
    assert reason in health.json()["refused"][bad.name]
    assert 'bonbon_swaps_total{outcome="refused"} 1.0' in scrape
    failed = [event for event in history if event.kind == "swap_failed"]
    assert [(event.version, reason in event.detail["reason"]) for event in failed] == [(bad.name, True)]


async def test_a_version_of_another_base_is_refused(tmp_path: Path) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        await service.state.registry.register_base("other", None)
        foreign = await new_version(service.state.registry, 1, base="other")
        await service.state.registry.promote(foreign.name, force=True)
        await eventually(lambda: foreign.name in service.state.swapper.refused)
        assert "belongs to the base 'other'" in service.state.swapper.refused[foreign.name].reason
        assert service.state.router.champion == BASE
    assert engine.events == []


async def test_golden_prompts_have_a_deadline(tmp_path: Path) -> None:
    engine = WatchedEngine(delay=0.2)
    async with running(settings_in(tmp_path), engine=engine) as service:
        service.state.swapper.golden_deadline = 0.1
        slow = await service.promoted(1)
        await eventually(lambda: slow.name in service.state.swapper.refused)
        assert "within 0.1 s" in service.state.swapper.refused[slow.name].reason


async def test_a_refused_version_is_tried_again_with_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "RETRY_FIRST", 0.1)
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        bad = await new_version(service.state.registry, 1)
        engine.nan.add(bad.name)
        await service.state.registry.promote(bad.name, force=True)
        swapper = service.state.swapper
        await eventually(lambda: bad.name in swapper.refused and swapper.refused[bad.name].attempts == 3)
        loads = engine.events.count(("load", bad.name))
        assert loads == 3  # polls in between, every 0.02 s, did not try
        engine.nan.clear()
        await eventually(lambda: service.state.router.champion == bad.name)
        assert swapper.refused == {}


async def test_a_moved_alias_gives_a_refused_version_another_try_at_once(tmp_path: Path) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        state = service.state
        bad = await new_version(state.registry, 1)
        engine.nan.add(bad.name)
        await state.registry.promote(bad.name, force=True)
        await eventually(lambda: bad.name in state.swapper.refused)
        await state.registry.rollback()
        await state.swapper.converge()
        engine.nan.clear()
        await state.registry.promote(bad.name, force=True)
        await eventually(lambda: state.router.champion == bad.name)


async def test_rollback_is_immediate_and_loads_nothing(tmp_path: Path) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        first, second = await service.promoted(1), await service.promoted(2)
        await service.state.swapper.converge()
        assert (await service.ask()).json()["bonbon"]["version"] == second.name
        loads = len(engine.events)
        await service.state.registry.rollback()
        await service.state.swapper.converge()
        assert (await service.ask()).json()["bonbon"]["version"] == first.name
        assert len(engine.events) == loads


async def test_two_promotions_in_quick_succession_serve_the_last(tmp_path: Path) -> None:
    engine = SlowLoading()
    async with running(settings_in(tmp_path), engine=engine) as service, Traffic(service, workers=3) as traffic:
        first = await new_version(service.state.registry, 1)
        second = await new_version(service.state.registry, 2)
        await service.state.registry.promote(first.name, force=True)
        await engine.loading.wait()
        await service.state.registry.promote(second.name, force=True)
        engine.gate.set()
        await traffic.answers_of(second.name)
    assert traffic.failures == []
    assert set(traffic.versions) <= {BASE, second.name, "streamed"}  # the overtaken one never answered


class SlowLoading(WatchedEngine):
    """An engine whose loads wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.loading, self.gate = asyncio.Event(), asyncio.Event()

    async def load(self, version: object) -> None:
        self.loading.set()
        await self.gate.wait()
        await super().load(version)  # type: ignore[arg-type]


async def test_a_restart_converges_to_the_registry(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        first, second = await service.promoted(1), await service.promoted(2)
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        assert (await service.ask()).json()["bonbon"]["version"] == second.name
        assert await engine.loaded() == {BASE, first.name, second.name}
        assert service.state.router.aliases()["previous"] == first.name


async def test_a_crash_while_swapping_leaves_a_registry_to_converge_to(tmp_path: Path) -> None:
    engine = SlowLoading()
    async with running(settings_in(tmp_path), engine=engine) as service:
        version = await service.promoted(1)
        await engine.loading.wait()
        assert service.state.router.champion == BASE
        # The block ends with the load unfinished; nothing of this process's state is kept.
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        assert (await service.ask()).json()["bonbon"]["version"] == version.name


@pytest.mark.parametrize("harmed", [1, 2])
async def test_a_start_without_its_champion_serves_the_last_good_one(tmp_path: Path, harmed: int) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        versions = [await service.promoted(1), await service.promoted(2)]
    for version in versions[2 - harmed :]:
        flip_byte(version.directory / "adapter_model.safetensors")
    good = versions[0].name if harmed == 1 else BASE
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        answer = (await service.ask()).json()["bonbon"]
        health = (await service.client.get("/health/ready")).json()
        assert (answer["version"], answer["n"]) == (good, 1 if good != BASE else 4)
        assert (health["status"], health["champion"], health["serving"]) == ("ready", versions[1].name, good)
        assert "corrupt" in health["refused"][versions[1].name]


async def test_a_database_that_fails_leaves_the_routes_alone(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        state = service.state
        version = await service.promoted(1)
        await eventually(lambda: state.router.champion == version.name)
        broken = Swapper(state.engine, Unreachable(state.registry), state.router, state.metrics, poll=0.01)
        await broken.start()
        broken.registry.down = True  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        await broken.stop()
        assert broken.registry.asked > 0  # type: ignore[attr-defined]
        assert state.router.champion == version.name


class Unreachable(Registry):
    """A registry whose database can become unavailable."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry.database, registry.root)
        self.down, self.asked = False, 0

    async def targets(self) -> dict[str, Target]:
        if self.down:
            self.asked += 1
            raise OSError("connection refused")
        return await super().targets()


async def test_a_promotion_by_an_outdated_view_moves_nothing(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        first = await service.promoted(1)
        second = await new_version(service.state.registry, 2)
        with pytest.raises(Conflict):
            await service.state.registry.promote(second.name, expected=BASE, force=True)
        await service.state.swapper.converge()
        assert service.state.router.champion == first.name


async def saved(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Returns the registry's rows, as in a backup."""
    async with database.read() as connection:
        return {
            table.name: [dict(row) for row in (await connection.execute(select(table))).mappings()]
            for table in (versions, version_numbers, aliases)
        }


async def restored(database: Database, rows: dict[str, list[dict[str, Any]]]) -> None:
    """The registry as it was then."""
    async with database.write() as connection:
        for table in (versions, version_numbers, aliases):
            await connection.execute(delete(table))
            if rows[table.name]:
                await connection.execute(insert(table), rows[table.name])


async def test_a_registry_that_was_restored_gives_no_name_of_before_to_other_weights(tmp_path: Path) -> None:
    """The service looks at the registry only after all of it: after backup, promotion, restoring, another promotion."""
    engine = WatchedEngine()
    async with running(settings_in(tmp_path, registry_poll=3600.0), engine=engine) as service:
        state = service.state
        backup = await saved(state.database)
        lost = await service.promoted(1)
        await state.swapper.converge()
        assert state.router.champion == lost.name
        await restored(state.database, backup)
        new = await service.promoted(2)
        assert new.digest != lost.digest
        await state.swapper.converge()
        answer = (await service.ask()).json()["bonbon"]["version"]
        assert answer == new.name
        assert engine.directories[answer] == new.directory
        assert (await service.ask(lost.name)).status_code == (404 if lost.name != new.name else 200)


async def test_a_name_that_means_other_files_now_is_served_no_more(tmp_path: Path) -> None:
    """As a registry of an earlier release has it, whose names have no digest in them."""
    engine = WatchedEngine()
    async with running(settings_in(tmp_path, registry_poll=3600.0), engine=engine) as service:
        state = service.state
        promoted = await service.promoted(1)
        await state.swapper.converge()
        other = await new_version(state.registry, 2)
        async with state.database.write() as connection:
            files = {"digest": other.digest, "directory": str(other.directory)}
            await connection.execute(update(versions).where(versions.c.name == promoted.name).values(**files))
        await state.swapper.converge()
        assert (await service.ask()).json()["bonbon"]["version"] == BASE
        assert (await service.ask(promoted.name)).status_code == 404
        refused = (await service.client.get("/health/ready")).json()["refused"]
        assert "restart the service" in refused[promoted.name]
        assert engine.torn == []
