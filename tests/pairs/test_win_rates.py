"""Live win rates in the database: counted once, by several gateways together, and kept when groups are purged."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bonbon.errors import StoreError
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import purge
from bonbon.pairs.group_records import Comparison
from bonbon.pairs.live.win_rates import read_win_rates
from bonbon.pairs.pair_log import PairLog
from bonbon.store.database import Database, open_database
from bonbon.theory import RollingSequence
from tests.support.data.groups import scored_group

REWARDS = {"win": (1.0, 0.0), "tie": (1.0, 1.0), "loss": (0.0, 1.0)}


def comparison(group_id: str, outcome: str, opponent: str = "tiny") -> Comparison:
    ours, theirs = REWARDS[outcome]
    return Comparison(group_id, datetime.now(UTC), "v1", opponent, "helpful", "1", ours, theirs)


@pytest.fixture
async def logs(database: Database, database_url: str) -> AsyncIterator[list[PairLog]]:
    """Opens two gateways' logs of one database."""
    async with open_database(database_url) as other:
        logs = [PairLog(database), PairLog(other)]
        for log in logs:
            await log.start()
        yield logs
        for log in logs:
            await log.stop()


async def test_several_gateways_count_together(logs: list[PairLog], database: Database) -> None:
    group = scored_group()
    await logs[0].append(group)
    outcomes = ["win", "win", "tie", "loss", "win", "win"] * 5
    counted = await asyncio.gather(
        *(logs[i % 2].append_comparison(comparison(group.id, outcome)) for i, outcome in enumerate(outcomes))
    )
    assert sorted(live.count for live in counted) == list(range(1, 31))  # each saw those before it, and none twice
    [live] = await read_win_rates(database)
    assert (live.wins, live.ties, live.losses, live.recent) == (20, 5, 5, 30)
    assert live.win_rate == pytest.approx(22.5 / 30)
    assert live.band.low < live.win_rate < live.band.high


async def test_opponents_and_rewards_are_kept_apart(logs: list[PairLog], database: Database) -> None:
    group = scored_group()
    await logs[0].append(group)
    for other in (
        comparison(group.id, "win"),
        comparison(group.id, "loss", opponent="best-of-8"),
        replace(comparison(group.id, "tie"), reward_version="2"),
        replace(comparison(group.id, "tie"), version="v2"),
    ):
        await logs[0].append_comparison(other)
    assert [(live.version, live.opponent, live.reward_version) for live in await read_win_rates(database)] == [
        ("v2", "tiny", "1"),
        ("v1", "tiny", "2"),
        ("v1", "best-of-8", "1"),
        ("v1", "tiny", "1"),
    ]
    assert [live.ties for live in await read_win_rates(database, "v2")] == [1]


async def test_the_band_is_what_one_process_would_have_computed(logs: list[PairLog], database: Database) -> None:
    group, alone = scored_group(), RollingSequence()
    await logs[0].append(group)
    for i in range(12):
        outcome = ("win", "tie", "win", "loss")[i % 4]
        await logs[i % 2].append_comparison(comparison(group.id, outcome))
        alone.add({"win": 1.0, "tie": 0.5, "loss": 0.0}[outcome])
    [live] = await read_win_rates(database)
    assert live.sequence.state() == alone.state()


async def test_a_comparison_that_cannot_be_stored_is_not_counted(logs: list[PairLog], database: Database) -> None:
    with pytest.raises(StoreError):
        await logs[0].append_comparison(comparison("gone", "win"))
    assert await read_win_rates(database) == []


async def test_counts_outlive_the_groups_they_came_from(logs: list[PairLog], database: Database) -> None:
    group = scored_group()
    await logs[0].append(group)
    await logs[0].append_comparison(comparison(group.id, "win"))
    assert await purge(database, Conditions(older_than=datetime.now(UTC) + timedelta(days=1))) == 1
    [live] = await read_win_rates(database)
    assert live.count == 1
