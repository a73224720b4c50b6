"""Tests that a round scores older groups with the newest reward when that has scored too few."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bonbon.errors import RewardError, UserError
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.reader import RewardKey, count_trainable
from bonbon.pairs.reading.snapshot import Snapshot
from bonbon.prompt import Prompt
from tests.support.data.groups import scored_group
from tests.support.data.loop_world import make_settings
from tests.support.data.sampled_groups import make_base
from tests.support.service.running_service import new_version
from trainer.context import RunContext, open_context
from trainer.loop import Loop
from trainer.rounds import Round

FAKE = RewardKey("fake", "1")
OLD = RewardKey("helpful", "1")
AWAY = RewardKey("python", "1")


def failing(prompt: Prompt, completions: list[str]) -> list[float]:
    raise ConnectionError("the reward is away")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@asynccontextmanager
async def opened(base: Path, directory: Path, *, rescore: bool = True, **changes: Any) -> AsyncIterator[RunContext]:
    changes = {"reward": {"kind": "fake"}, "loop": {"min_groups": 45}} | changes
    settings = make_settings(base, directory, train={"min_pairs": 16, "rescore": rescore}, **changes)
    async with open_context(settings, progress=False) as context:
        yield context


async def log(context: RunContext, count: int, *, reward: RewardKey = OLD, version: str = "base") -> None:
    pair_log = PairLog(context.database)
    await pair_log.start()
    for number in range(count):
        name, of = reward
        await pair_log.append(scored_group(number, version=version, reward_name=name, reward_version=of))
    await pair_log.stop()


async def snapshot(context: RunContext, start: str = "base") -> Snapshot:
    round_ = await Round.create(context, context.settings.runs_dir / "round-1", start=start)
    return await round_.snapshot()


async def counts(context: RunContext, version: str = "base") -> tuple[int, int]:
    """Returns the number of groups scored by the old reward and by the new one."""
    old, new = [await count_trainable(context.database, version, reward) for reward in (OLD, FAKE)]
    return old, new


async def test_a_round_trains_on_older_groups_after_the_reward_has_changed(base: Path, tmp_path: Path) -> None:
    async with opened(base, tmp_path) as context:
        await log(context, 60)
        await log(context, 5, reward=FAKE)
        await context.registry.promote("base")
        assert (await Loop(context).next_round()).is_ready
        taken = await snapshot(context)
        assert (taken.reward_name, taken.groups, taken.other_rewards) == ("fake", 45, 20)
        assert await counts(context) == (20, 45)


async def test_the_base_and_the_version_to_start_from_each_get_as_many(base: Path, tmp_path: Path) -> None:
    async with opened(base, tmp_path) as context:
        version = (await new_version(context.registry, 1, base="base", parent="base")).name
        await log(context, 50)
        await log(context, 10, version=version)
        await log(context, 46, version=version, reward=FAKE)
        taken = await snapshot(context, version)
        assert (taken.groups, taken.other_rewards) == (45 + 46, 5 + 10)
        assert (await counts(context), await counts(context, version)) == ((5, 45), (10, 46))


@pytest.mark.parametrize("changes", [{"rescore": False}, {"reward": None}], ids=["switched off", "no reward is set"])
async def test_without_it_a_round_has_what_the_newest_reward_scored(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    async with opened(base, tmp_path, **changes) as context:
        await log(context, 60)
        await log(context, 5, reward=FAKE)
        taken = await snapshot(context)
        assert (taken.groups, taken.other_rewards) == (5, 60)


async def test_where_there_are_enough_and_nothing_is_drawn_the_reward_is_not_even_started(
    base: Path, tmp_path: Path
) -> None:
    async with opened(base, tmp_path, engine="fake", engine_options={}, reward="http://127.0.0.1:9/score") as context:
        await log(context, 20)
        await log(context, 45, reward=FAKE)
        assert (await snapshot(context)).groups == 45


async def test_a_reward_that_is_not_the_newest_scores_nothing_and_is_named(base: Path, tmp_path: Path) -> None:
    """Otherwise service and trainer would score the log again in turns."""
    async with opened(base, tmp_path, engine="fake", engine_options={}, reward={"kind": "length"}) as context:
        await log(context, 60)
        await log(context, 5, reward=FAKE)
        with capture_logs() as entries:
            taken = await snapshot(context)
        assert taken.groups == 5
        (warning,) = [entry for entry in entries if entry["log_level"] == "warning"]
        assert (warning["settings"], warning["newest"]) == ("length over-0-words-1", "fake 1")


async def test_draws_are_not_compared_with_groups_that_another_reward_has_scored(base: Path, tmp_path: Path) -> None:
    async with opened(base, tmp_path) as context:
        await log(context, 120)
        refused = r"the reward 'fake 1', but the groups were last scored by 'helpful 1'.*`bonbon pairs rescore`"
        with pytest.raises(UserError, match=refused):
            await snapshot(context)
        assert not (context.settings.runs_dir / "round-1" / "snapshot").exists()


async def test_draws_are_not_compared_with_a_given_snapshot_that_another_reward_has_scored(
    base: Path, tmp_path: Path
) -> None:
    async with opened(base, tmp_path, engine="fake", engine_options={}) as context:
        await log(context, 120)
        path = (await snapshot(context)).path
    async with opened(base, tmp_path) as context:
        round_ = await Round.create(context, context.settings.runs_dir / "round-2", snapshot=path)
        with pytest.raises(UserError, match="take a new snapshot"):
            await round_.train()
        assert not (round_.directory / "draws").exists()


async def test_a_reward_that_has_to_score_is_tested_before_the_round_depends_on_it(base: Path, tmp_path: Path) -> None:
    """Otherwise the few groups that it fails to score would be left out of the snapshot, and no one would be told."""
    reward = {"kind": "python", "target": f"{__name__}:failing", "version": "1"}
    async with opened(base, tmp_path, reward=reward) as context:
        await log(context, 60)
        await log(context, 5, reward=AWAY)
        with pytest.raises(RewardError, match="the reward is away"):
            await snapshot(context)
        assert await count_trainable(context.database, "base", AWAY) == 5


async def test_a_reward_that_fails_interrupts_the_round_and_the_round_goes_on_later(base: Path, tmp_path: Path) -> None:
    async with opened(base, tmp_path, reward="http://127.0.0.1:9/score") as context:
        await log(context, 60)
        await log(context, 5, reward=FAKE)
        with pytest.raises(RewardError, match="reward http cannot score"):
            await snapshot(context)
    async with opened(base, tmp_path) as context:
        round_ = Round.open(context, context.settings.runs_dir / "round-1")
        assert round_.unfinished
        assert (await round_.snapshot()).groups == 45
