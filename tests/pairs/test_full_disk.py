"""Tests of a trainer whose real disk fills up: it registers nothing incomplete and continues once there is space."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bonbon.registry.version_records import Version
from bonbon.settings import Settings
from tests.support.data.loop_world import answer, make_settings
from tests.support.data.sampled_groups import make_base
from tests.support.full_disk import fill
from trainer.context import RunContext, open_context
from trainer.disk_full import DiskFull
from trainer.loop import Loop
from trainer.rounds import Round


@pytest.fixture
async def settings(tmp_path: Path, small_disk: Path) -> Settings:
    """Puts runs and versions on the small disk, and the database elsewhere."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}"
    train = {"epochs": 1, "min_pairs": 16, "checkpoint_every": 1}
    changes = {"train": train, "evaluate": {"prompts": 8}, "loop": {"min_groups": 50}}
    made = make_settings(make_base(tmp_path / "base"), small_disk / "data", database_url=url, **changes)
    await answer(made, 60)
    gate = made.gate.model_copy(update={"min_win_rate": 0.0, "margin": 0.49})
    return made.model_copy(update={"gate": gate})


@asynccontextmanager
async def context(settings: Settings) -> AsyncIterator[RunContext]:
    async with open_context(settings, progress=False) as open_:
        yield open_


async def trained(open_: RunContext) -> list[Version]:
    return [version for version in await open_.registry.list() if version.parent]


# TensorBoard writes in a thread of its own, which has nobody to tell.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_full_disk_at_any_stage_costs_nothing_but_time(settings: Settings, small_disk: Path) -> None:
    """The disk fills up at the plan, the snapshot, a checkpoint during training, the result or the version's
    directory."""
    async with context(settings) as open_:
        loop = Loop(open_)

        async def fails(*, leave: int = 0) -> None:
            ballast = fill(small_disk, leave=leave)
            with pytest.raises(DiskFull, match=r"the disk of .*/runs/round-.* is full: free some space"):
                await loop.once()
            ballast.unlink()
            assert await trained(open_) == []
            versions = settings.versions_dir
            assert not versions.exists() or not {path.name for path in versions.iterdir()} - {base.directory.name}

        base = await open_.champion()
        await fails()  # the plan
        await fails(leave=8192)  # the plan is there, and not the snapshot
        (run,) = (path.parent for path in settings.runs_dir.glob("round-*/round.json"))
        round_ = Round.open(open_, run)
        await round_.snapshot()
        await fails(leave=8192)  # what the reference says of it
        filling = asyncio.create_task(fill_after_a_checkpoint(run, small_disk))
        with pytest.raises(DiskFull):
            await loop.once()
        (await filling).unlink()
        assert not (run / "output").exists()
        await round_.evaluate()
        await fails()  # the version's directory
        version = await loop.once()
        assert version is not None
        assert await open_.registry.champion() == version.name
        await open_.registry.verify(version.name)


async def fill_after_a_checkpoint(run: Path, disk: Path) -> Path:
    while not list(run.glob("checkpoints/offline/step-*")):
        await asyncio.sleep(0.001)
    return fill(disk)


async def test_the_daemon_says_so_and_goes_on_by_itself(settings: Settings, small_disk: Path) -> None:
    ballast, stop = fill(small_disk, leave=8192), asyncio.Event()
    async with context(settings) as open_:
        with capture_logs() as logs:
            daemon = asyncio.create_task(Loop(open_).run(stop))
            async with asyncio.timeout(120):
                while not any(entry["event"].startswith("the disk is full") for entry in logs):
                    await asyncio.sleep(0.05)
                ballast.unlink()
                while not await trained(open_):
                    await asyncio.sleep(0.1)
            stop.set()
            await daemon
