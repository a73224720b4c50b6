"""Tests of the loop on real components: a tiny random policy, the embedded engine, the pair log and the registry."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from bonbon.engines.engine import VersionKind
from bonbon.errors import Conflict, StoreError, UserError
from bonbon.registry.leases import acquire
from bonbon.registry.round_progress import REFUSED, read_rounds
from bonbon.registry.version_records import Version, VersionState
from bonbon.settings import Settings
from bonbon.store.tables import versions as table
from tests.support.data.loop_world import answer, make_settings
from tests.support.data.sampled_groups import make_base
from trainer.context import RunContext, open_context
from trainer.evaluation.evaluation import Evaluation
from trainer.held_lease import HeldLease
from trainer.inspection import inspect
from trainer.loop import LEASE, Loop, RoundFailed
from trainer.rounds import Round


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def logged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with 200 groups of the base."""
    data_dir = tmp_path_factory.mktemp("logged") / "data"
    asyncio.run(answer(make_settings(base, data_dir), 200))
    return data_dir


@pytest.fixture(scope="module")
def trained(base: Path, logged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data directory with a round that was interrupted after its evaluation."""
    data_dir = tmp_path_factory.mktemp("trained") / "data"
    shutil.copytree(logged, data_dir)

    async def work() -> None:
        async with context(make_settings(base, data_dir)) as open_:
            round_ = await Round.create(open_, open_.settings.runs_dir / "round-1")
            await round_.evaluate()

    asyncio.run(work())
    return data_dir


@pytest.fixture
def settings(base: Path, logged: Path, tmp_path: Path) -> Settings:
    shutil.copytree(logged, tmp_path / "data")
    return make_settings(base, tmp_path / "data")


@pytest.fixture
def resumed(base: Path, trained: Path, tmp_path: Path) -> Settings:
    """Settings on a copy of the interrupted round."""
    shutil.copytree(trained, tmp_path / "data")
    return make_settings(base, tmp_path / "data")


@asynccontextmanager
async def context(settings: Settings) -> AsyncIterator[RunContext]:
    async with open_context(settings, progress=False) as open_:
        yield open_


def changed(settings: Settings, **sections: dict[str, Any]) -> Settings:
    update = {name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    return settings.model_copy(update=update)


async def versions(open_: RunContext) -> list[Version]:
    return [version for version in await open_.registry.list() if version.parent]


async def test_two_rounds_each_from_the_champion_before_it(settings: Settings) -> None:
    """Where the first version answers with one draw, the second one cannot save anything."""
    async with context(settings) as open_:
        first = await Loop(open_).once()
        assert first is not None
        assert first.name == await open_.registry.champion()
        assert first.name == f"base-bonbon-0001-{first.digest[:8]}"
        assert first.parent == "base"
        evaluation = Evaluation.from_dict(first.evaluation)
        assert evaluation.version == first.name
        assert evaluation.win_rate.value > 0.5
        assert evaluation.kl.low > 0
        assert (evaluation.served, evaluation.served_k) == ("base", 8)
        assert first.verdict is not None
        assert first.verdict["passed"]
        assert first.k == first.verdict["k"] < 8
        assert first.training["start"] == "base"
        assert {"train_groups", "validation_groups", "test_groups", "first_group", "last_group"} < first.training.keys()
        interpolation = json.loads((settings.data_dir / first.training["run"] / "interpolation.json").read_text())
        assert first.training["metrics"]["interpolation_share"] == interpolation["chosen"]["share"]
        assert set(first.training["seconds"]) == {"train", "evaluate"}
        run = settings.data_dir / first.training["run"]
        assert json.loads((run / "finished.json").read_text())["outcome"] == "promoted"
        assert first.name in (run / "report.html").read_text()
        assert await Loop(open_).once() is None, "no group of the new champion is there yet"

    await answer(settings, 160, version=first.files, seed=1000)
    async with context(settings) as open_:
        assert (await Loop(open_).next_round()).groups >= 150
        second = await Loop(open_).once(now=True)
        assert second is not None
        assert second.parent == first.name
        twice = Evaluation.from_dict(second.evaluation)
        assert (twice.served, twice.served_k) == (first.name, first.k)
        assert second.training["start"] == first.name
        assert second.training["groups"] > 300, "it has the groups of the base and those of the first version"
        assert second.verdict is not None
        aliases = await open_.registry.aliases()
        if second.verdict["passed"]:
            assert (aliases["champion"], aliases["previous"]) == (second.name, first.name)
        else:
            assert aliases["champion"] == first.name


@pytest.mark.parametrize("auto_promote", [True, False])
async def test_what_the_gate_refuses_is_registered_and_not_promoted(resumed: Settings, auto_promote: bool) -> None:
    refusing = changed(resumed, gate={"min_win_rate": 0.999}, loop={"auto_promote": auto_promote})
    async with context(refusing) as open_:
        version = await Loop(open_).once()
        assert version is not None
        assert version.state is VersionState.REFUSED
        assert version.verdict is not None
        assert "win_rate" in [r["check"] for r in version.verdict["reasons"] if not r["passed"]]
        assert await open_.registry.champion() == "base"
        assert [told.outcome for told in await read_rounds(open_.registry.database)] == [REFUSED]
        upcoming = await Loop(open_).next_round()
        assert (upcoming.champion, upcoming.groups, upcoming.is_ready) == ("base", 0, False)
        assert upcoming.needed == version.training["groups"], "it waits until there are twice as many groups"
        assert await Loop(open_).once() is None


async def test_without_auto_promote_the_version_waits_approved(resumed: Settings) -> None:
    async with context(changed(resumed, loop={"auto_promote": False})) as open_:
        version = await Loop(open_).once()
        assert version is not None
        assert version.state is VersionState.APPROVED
        assert await open_.registry.champion() == "base"


async def test_a_cut_off_round_goes_on_where_it_was(resumed: Settings) -> None:
    run = resumed.runs_dir / "round-1"
    before = {name: (run / name).stat().st_mtime_ns for name in ("training.json", "snapshot/snapshot.json")}
    async with context(resumed) as open_:
        registered = await Round.open(open_, run).register()
    (run / "registered.json").unlink()  # as if it had been cut off before it noted that
    async with context(resumed) as open_:
        version = await Loop(open_).once()
        assert version is not None
        assert version.name == registered.name
        trail, finished = await open_.registry.history(), (run / "finished.json").read_text()
        (run / "finished.json").unlink()  # and again after it was promoted
        assert await Loop(open_).once() == version
        assert (run / "finished.json").read_text() == finished
        assert await open_.registry.history() == trail
        assert [v.name for v in await versions(open_)] == [registered.name]
        assert await open_.registry.champion() == registered.name
    assert before == {name: (run / name).stat().st_mtime_ns for name in before}


async def test_cut_off_between_evaluation_and_verdict_it_records_the_evaluation_once(
    resumed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resumed.runs_dir / "round-1"
    async with context(resumed) as open_:
        with monkeypatch.context() as patched:
            patched.setattr(open_.registry, "approve", AsyncMock(side_effect=StoreError("cut off")))
            with pytest.raises(StoreError, match="cut off"):
                await Round.open(open_, run).register()
        version = await Round.open(open_, run).register()
        kinds = [event.kind for event in await open_.registry.history(version=version.name)]
    assert kinds == ["approved", "evaluated", "registered"]


async def test_stopped_before_a_stage_it_goes_on_later(resumed: Settings) -> None:
    stop = asyncio.Event()
    stop.set()
    async with context(resumed) as open_:
        assert await Loop(open_).once(stop) is None
        assert await versions(open_) == []
        stop.clear()
        version = await Loop(open_).once(stop)
        assert version is not None
        assert version.state is VersionState.PROMOTED


async def test_one_trainer_at_a_time(resumed: Settings) -> None:
    async with context(resumed) as open_:
        await acquire(open_.database, LEASE, "another", 60)
        with pytest.raises(Conflict, match="held by another"):
            await Loop(open_).once()
        assert await versions(open_) == []


async def test_a_lost_lease_stops_before_registering(resumed: Settings) -> None:
    slow = changed(resumed, loop={"lease_seconds": 0.3})
    async with context(slow) as open_:
        round_ = Round.open(open_, slow.runs_dir / "round-1")
        async with HeldLease(open_.database, LEASE, 0.3) as lease:
            lease._renewing.cancel()  # the process was paused
            await asyncio.sleep(0.4)
            await acquire(open_.database, LEASE, "another", 60)
            with pytest.raises(Conflict):
                await lease.confirm()
            with pytest.raises(Conflict):
                await lease.confirm()
        assert round_.unfinished
        with pytest.raises(Conflict, match="another"):
            await Loop(open_).once()
        assert await versions(open_) == []


async def test_a_held_lease_outlives_its_length_and_is_given_back(resumed: Settings) -> None:
    async with context(resumed) as open_:
        async with HeldLease(open_.database, LEASE, 0.3) as lease:
            await asyncio.sleep(0.8)
            await lease.confirm()
            with pytest.raises(Conflict):
                await acquire(open_.database, LEASE, "another", 1)
        await acquire(open_.database, LEASE, "another", 1)


async def test_a_renewal_that_finds_the_lease_taken_tells_the_holder(resumed: Settings) -> None:
    async with context(resumed) as open_:
        lease = HeldLease(open_.database, LEASE, 0.3)
        with capture_logs() as logs:
            async with lease:
                from sqlalchemy import update

                from bonbon.store.tables import leases

                async with open_.database.write() as connection:
                    await connection.execute(update(leases).values(holder="another", token=99))
                await asyncio.sleep(0.25)
                with pytest.raises(Conflict):
                    await lease.confirm()
        assert [entry["event"] for entry in logs] == ["lease lost"]


async def test_a_champion_promoted_meanwhile_is_not_replaced(resumed: Settings) -> None:
    async with context(resumed) as open_:
        round_ = Round.open(open_, resumed.runs_dir / "round-1")
        version = await round_.register()
        await open_.registry.promote(version.name, actor="somebody")
        await open_.registry.rollback(actor="somebody")
        other = await open_.registry.register(
            base="base", parent="base", kind=version.kind, directory=round_.directory / "output", training={}
        )
        await open_.registry.promote(other.name, force=True)
        result = await Loop(open_).once()
        assert result is not None
        assert await open_.registry.champion() == other.name
        assert "another version has replaced it" in (round_.directory / "finished.json").read_text()


async def test_a_round_that_was_cut_off_after_its_promotion_leaves_a_rollback_as_it_is(resumed: Settings) -> None:
    async with context(resumed) as open_:
        version = await Round.open(open_, resumed.runs_dir / "round-1").register()
        await open_.registry.promote(version.name, expected="base", actor="trainer")  # and here it was cut off
        await open_.registry.rollback(actor="somebody")
        result = await Loop(open_).once()
        assert result is not None
        assert result.name == version.name
        assert await open_.registry.champion() == "base"


async def test_what_cannot_be_trained_closes_the_round(settings: Settings) -> None:
    async with context(changed(settings, train={"batch_size": 4096, "micro_batch_size": 4096})) as open_:
        with pytest.raises(RoundFailed, match="batch_size = 4096"):
            await Loop(open_).once()
        (run,) = settings.runs_dir.glob("round-*")
        assert not Round.open(open_, run).unfinished
        with pytest.raises(RoundFailed):
            await Loop(open_).run(asyncio.Event())


async def test_settings_that_could_never_train_are_refused_at_once(settings: Settings) -> None:
    async with context(changed(settings, loop={"min_groups": 39})) as open_:
        with pytest.raises(UserError, match=r"leaves about \d+ pairs .* train.min_pairs = 32"):
            Loop(open_)


async def test_the_daemon_tries_again_what_may_pass_and_stops_when_told(
    resumed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resumed.runs_dir / "round-1"
    (run / "evaluation.json").unlink()
    stop = asyncio.Event()
    failing = resumed.model_copy(
        update={"reward": resumed.reward.model_copy(update={"target": "tests.trainer.test_loop:fail_once"})}  # type: ignore[union-attr]
    )
    async with context(failing) as open_:
        with capture_logs() as logs:
            daemon = asyncio.create_task(Loop(open_).run(stop))
            async with asyncio.timeout(60):
                while not (run / "finished.json").exists():
                    await asyncio.sleep(0.05)
            stop.set()
            await daemon
        assert "the round was interrupted; retrying it" in [entry["event"] for entry in logs]
        champion = await open_.registry.champion()
        assert champion is not None
        assert champion.startswith("base-bonbon-0001-")


async def test_the_daemon_waits_for_another_trainer(resumed: Settings) -> None:
    stop = asyncio.Event()
    async with context(resumed) as open_:
        await acquire(open_.database, LEASE, "another", 60)
        with capture_logs() as logs:
            daemon = asyncio.create_task(Loop(open_).run(stop))
            await asyncio.sleep(0.3)
            stop.set()
            await daemon
        assert {entry["event"] for entry in logs} == {"another trainer is running"}


async def test_a_round_from_a_given_snapshot(resumed: Settings) -> None:
    taken = resumed.runs_dir / "round-1" / "snapshot"
    async with context(resumed) as open_:
        directory = resumed.runs_dir / "by-hand"
        round_ = await Round.create(open_, directory, snapshot=taken)
        assert round_.plan.start == "base"
        assert (await round_.snapshot()).path == taken
        with pytest.raises(UserError, match="already holds a run"):
            await Round.create(open_, directory)
        with pytest.raises(UserError, match="taken to start from base, not from other"):
            await Round.create(open_, resumed.runs_dir / "elsewhere", snapshot=taken, start="other")
        with pytest.raises(UserError, match="holds no run"):
            Round.open(open_, resumed.runs_dir / "nowhere")


async def test_a_start_that_the_method_cannot_go_on_from_is_refused_before_anything_is_taken(
    settings: Settings,
) -> None:
    async with context(settings) as open_:
        full = await open_.registry.register(
            base="base", parent="base", kind=VersionKind.FULL, directory=Path(settings.model), training={}
        )
        with pytest.raises(
            UserError, match=f"train.method = 'lora' cannot continue from {full.name}: it has whole weights"
        ):
            await Round.create(open_, settings.runs_dir / "new", start=full.name)
    assert not (settings.runs_dir / "new").exists()


async def test_versions_runs_and_the_base_can_be_measured_again(resumed: Settings) -> None:
    quick = changed(resumed, evaluate={"prompts": 12})
    run = quick.runs_dir / "round-1"
    async with context(quick) as open_:
        unregistered = await inspect(open_, str(run))
        assert unregistered.evaluation.prompts == 12
        version = await Round.open(open_, run).register()
        again = await inspect(open_, str(run))
        assert again.evaluation.version == version.name
        assert again.report == run / "report.html"
        assert (await open_.registry.get(version.name)).evaluation == again.evaluation.to_dict()
        # An earlier release recorded an absolute path: here, one into the data directory that this one was copied from.
        original = shutil.copytree(run, quick.data_dir.parent / "original" / "runs" / "round-1")
        async with open_.database.write() as connection:
            recorded = version.training | {"run": str(original)}
            await connection.execute(update(table).where(table.c.name == version.name).values(training=recorded))
        shutil.rmtree(run)
        elsewhere = await inspect(open_, version.name)
        assert elsewhere.evaluation.win_rate == again.evaluation.win_rate
        assert elsewhere.report.parent.name == f"evaluate-{version.name}"
        of_base = await inspect(open_, "base")
        assert of_base.evaluation.win_rate.low < 0.5 < of_base.evaluation.win_rate.high
        assert of_base.evaluation.kl.value == 0
        (quick.runs_dir / "empty").mkdir()
        await Round.create(open_, quick.runs_dir / "empty")
        with pytest.raises(UserError, match=r"the training in .* has not finished"):
            await inspect(open_, str(quick.runs_dir / "empty"))


async def test_the_base_is_found_through_the_champion(resumed: Settings, tmp_path: Path) -> None:
    async with context(resumed.model_copy(update={"model": ""})) as open_:
        assert open_.base.name == "base"
        assert open_.settings.model == resumed.model
    with pytest.raises(UserError, match="no model is set and nothing is served yet"):
        async with context(Settings(data_dir=tmp_path / "new")):
            pass
    async with context(resumed.model_copy(update={"reward": None})) as open_:
        with pytest.raises(UserError, match="no reward is set"):
            await Round.open(open_, resumed.runs_dir / "round-1").context.evaluate(
                open_.base.files, await Round.open(open_, resumed.runs_dir / "round-1").snapshot(), served=None
            )


def fail_once(prompt: Any, completions: list[str]) -> list[float]:
    """Fails the first time it is called in this process."""
    from tests.support.data.sampled_groups import score

    fail_once.calls = getattr(fail_once, "calls", 0) + 1  # type: ignore[attr-defined]
    if fail_once.calls == 1:  # type: ignore[attr-defined]
        raise ConnectionError("the reward is away")
    return score(prompt, completions)
