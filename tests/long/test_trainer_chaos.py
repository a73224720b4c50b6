"""Tests that trainers which are killed, stopped or run concurrently give the result of an undisturbed one."""

import asyncio
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bonbon.erase import erase
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.long.trainer_chaos import STAGES, Chaos, Trainer, chaos_of_one_round, chaos_settings
from tests.support.data.loop_world import answer
from tests.support.data.sampled_groups import make_base
from tests.support.until import until
from trainer.context import RunContext, open_context
from trainer.loop import Loop
from trainer.training import launch


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a data directory with 200 of its groups."""
    directory = tmp_path_factory.mktemp("logged")
    asyncio.run(answer(chaos_settings(make_base(directory / "base"), directory / "data"), 200))
    return directory


@pytest.fixture
def settings(logged: Path, tmp_path: Path) -> Settings:
    shutil.copytree(logged / "data", tmp_path / "data")
    return chaos_settings(logged / "base", tmp_path / "data")


async def test_a_trainer_that_is_killed_in_every_stage_comes_to_the_same_end(tmp_path: Path) -> None:
    result = await chaos_of_one_round(tmp_path)
    assert result == Chaos(kills=dict.fromkeys(STAGES, 1), rounds=1)


async def test_two_trainers_or_one_that_is_stopped_for_longer_than_its_lease_do_one_round(
    settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"loop": settings.loop.model_copy(update={"lease_seconds": 3.0})})
    trainer = Trainer(tmp_path, settings)
    trainer.keep("logged")
    assert await asyncio.to_thread(trainer.run)
    undisturbed = await trainer.outcome()

    trainer.restore("logged")
    first, second = trainer.start(), trainer.start()
    await asyncio.to_thread(first.join)
    await asyncio.to_thread(second.join)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert await trainer.outcome() == undisturbed

    trainer.restore("logged")
    stopped = trainer.start()
    await until(lambda: bool(list(settings.runs_dir.glob("round-*/probe.json"))), seconds=120)
    await stop_outside_of_transactions(stopped.pid, settings)
    assert await asyncio.to_thread(trainer.run)
    os.kill(stopped.pid, signal.SIGCONT)
    await asyncio.to_thread(stopped.join)
    assert await trainer.outcome() == undisturbed


async def test_groups_deleted_while_a_round_learns_from_them_close_it_and_the_next_does_without(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(settings.data_dir / "bonbon.db") as connection:
        connection.execute("UPDATE groups SET end_user = 'ada' WHERE rowid <= 10")

    async def deleted_meanwhile(*arguments: Any, **named: Any) -> Any:
        result = await launch.run_training(*arguments, **named)
        async with open_database(settings.database) as database:
            spool = settings.data_dir / "spool"
            erased = await erase(database, settings.runs_dir, Conditions(user="ada"), spool_dir=spool)
        assert erased.snapshots
        return result

    async with context(settings) as open_:
        with monkeypatch.context() as patched:
            patched.setattr("trainer.rounds.run_training", deleted_meanwhile)
            assert await Loop(open_).once() is None
        (failed,) = settings.runs_dir.glob("round-*/failed.json")
        assert "deleted from the log" in failed.read_text()
        assert not (failed.parent / "output").exists()
        assert [version.name for version in await open_.registry.list()] == ["base"]
        version = await Loop(open_).once()
        assert version is not None
        assert version.training["groups"] == 190


async def test_what_a_training_draws_for_a_users_prompt_is_deleted_with_what_the_user_asked(settings: Settings) -> None:
    with sqlite3.connect(settings.data_dir / "bonbon.db") as connection:
        connection.execute("UPDATE groups SET end_user = 'ada'")
    async with context(settings) as open_:
        assert await Loop(open_).once() is not None
    with sqlite3.connect(settings.data_dir / "bonbon.db") as connection:
        users = dict(connection.execute("SELECT origin || ' ' || end_user, count(*) FROM groups GROUP BY 1"))
    assert users.pop("request ada") == 200
    assert set(users) == {"training ada"}
    async with open_database(settings.database) as database:
        await erase(database, settings.runs_dir, Conditions(user="ada"), spool_dir=settings.data_dir / "spool")
    with sqlite3.connect(settings.data_dir / "bonbon.db") as connection:
        assert connection.execute("SELECT count(*) FROM groups").fetchone() == (0,)


async def stop_outside_of_transactions(pid: int, settings: Settings) -> None:
    """SIGSTOP, at a moment at which the process does not hold SQLite's lock, which would stop everybody else."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(settings.data_dir / "bonbon.db", timeout=1.0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def context(settings: Settings) -> AsyncIterator[RunContext]:
    async with open_context(settings, progress=False) as open_:
        yield open_
