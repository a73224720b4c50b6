"""Tests of reading the pair log: pairs, counts, order and memory."""

import asyncio
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import count_purgeable, purge
from bonbon.pairs.group_records import Comparison, Feedback, Group, Unclean
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.newest_reward import newest_reward
from bonbon.pairs.reading.pair_stats import stats
from bonbon.pairs.reading.reader import RewardKey, count_clean, pairs
from bonbon.store.database import Database
from tests.support.data.groups import scored_group


async def fill(log: PairLog, count: int, **changes: Any) -> list[Group]:
    new = [scored_group(number, **changes) for number in range(count)]
    for group in new:
        await log.append(group)
    return new


async def test_a_pair_is_the_best_and_the_worst_of_its_group(database: Database, log: PairLog) -> None:
    (group,) = await fill(log, 1, n=8)
    (pair,) = [pair async for pair in pairs(database, version="tiny")]
    best, worst = group.best, group.worst
    assert best.reward == max(c.reward or 0 for c in group.candidates)
    assert (pair.chosen, pair.chosen_text, pair.chosen_reward) == (best.token_ids, best.text, best.reward)
    assert (pair.rejected, pair.rejected_text, pair.rejected_reward) == (worst.token_ids, worst.text, worst.reward)
    assert (pair.chosen_logprob, pair.rejected_logprob) == (best.logprob, worst.logprob)
    assert (pair.group_id, pair.prompt, pair.n, pair.temperature) == (group.id, group.prompt, 8, 1.0)
    assert pair.reward == RewardKey("helpful", "1")


async def test_only_clean_groups_of_the_version_in_order(database: Database, log: PairLog) -> None:
    """Ties, single draws and greedy groups are logged but are not pairs."""
    first = await fill(log, 3)
    await log.append(scored_group(rewards=(1.0, 1.0)))
    await log.append(scored_group(unclean=Unclean.SAMPLING))
    others = await fill(log, 2, version="v1")
    more = await fill(log, 2)
    found = [pair.group_id async for pair in pairs(database, version="tiny", chunk=2)]
    assert found == [group.id for group in (*first, *more)]
    everything = [pair.group_id async for pair in pairs(database, version=None, chunk=3)]
    assert everything == [group.id for group in (*first, *others, *more)]
    assert [pair.group_id async for pair in pairs(database, version="tiny", after=first[1].id)] == found[2:]
    assert await count_clean(database, "tiny") == 5
    assert await count_clean(database, None) == 7
    assert await count_clean(database, "tiny", after=first[-1].id) == 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 500])
async def test_every_pair_once_whatever_the_chunk(database: Database, log: PairLog, chunk: int) -> None:
    groups = await fill(log, 6)
    assert [p.group_id async for p in pairs(database, version="tiny", chunk=chunk)] == [g.id for g in groups]


async def test_groups_that_arrive_meanwhile_do_not_disturb(database: Database, log: PairLog) -> None:
    groups = await fill(log, 4)
    found = []
    async for pair in pairs(database, version="tiny", chunk=2):
        found.append(pair.group_id)
        if len(found) == 1:
            groups += await fill(log, 1)
    assert found == [group.id for group in groups]


async def test_a_long_log_is_read_in_constant_memory(database: Database, log: PairLog) -> None:
    """Ten times the groups may not use twice the memory; the first pass fills caches."""
    peaks = []
    for count in (100, 1000):
        await asyncio.gather(*(log.append(scored_group(number, version=f"v{count}")) for number in range(count)))
    for count in (100, 100, 1000):
        tracemalloc.start()
        read = 0
        async for _ in pairs(database, version=f"v{count}", chunk=20):
            read += 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read == count
    assert peaks[2] < 2 * peaks[1]


async def test_the_groups_of_a_version_to_train_on_are_one_index_range(database: Database, log: PairLog) -> None:
    """Reading on from a group neither scans nor sorts the whole log, most of which belongs to another version."""
    await fill(log, 500, version="v1")
    await fill(log, 20)
    chosen = "(unclean IS NULL OR unclean = 'tied') AND version = 'tiny' AND id > '0'"
    query = f"SELECT id FROM groups WHERE {chosen} ORDER BY id LIMIT 10"
    explain = "EXPLAIN QUERY PLAN" if database.url.get_backend_name() == "sqlite" else "EXPLAIN"
    async with database.write() as connection:
        await connection.execute(text("ANALYZE groups"))  # the plan follows statistics, which are there at any time
        if database.url.get_backend_name() == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))  # a small table is scanned otherwise
        plan = str((await connection.execute(text(f"{explain} {query}"))).all())
    assert "ix_groups_trainable" in plan
    assert "sort" not in plan.lower().replace("sort key", "")
    assert "TEMP B-TREE" not in plan


async def test_the_newest_reward_is_found(database: Database, log: PairLog) -> None:
    assert await newest_reward(database, "tiny") is None
    await fill(log, 2)
    await fill(log, 1, reward_version="2")
    await log.append(scored_group(reward_version="3", unclean=Unclean.SAMPLING))
    assert await newest_reward(database, "tiny") == RewardKey("helpful", "2")


async def test_stats_count_everything(database: Database, log: PairLog) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    groups = [scored_group(i, rewards=(0.0, 1.0, 3.0), time=start + timedelta(hours=i)) for i in range(4)]
    groups.append(scored_group(rewards=(1.0, 1.0), time=start))
    groups.append(scored_group(n=2, version="v1", unclean=Unclean.SAMPLING, time=start))
    for group in groups:
        await log.append(group)
    for ours, theirs in ((1, 0), (1, 0), (1, 1), (0, 1)):
        await log.append_comparison(Comparison(groups[0].id, start, "v1", "tiny", "helpful", "1", ours, theirs))
    await log.append_comparison(Comparison(groups[0].id, start, "v1", "tiny", "helpful", "1", 2.0, 1.0, k=4))
    await log.append_feedback(Feedback(groups[0].id, start, score=1.0))
    found = await stats(database)
    assert (found.groups, found.clean, found.unclean) == (6, 4, {"sampling": 1, "tied": 1})
    assert found.versions == {"tiny": 5, "v1": 1}
    assert found.rewards == {"helpful 1": 6}
    assert found.candidates == 16
    assert found.mean_margin == pytest.approx(3.0)
    assert found.comparisons == [
        {"version": "v1", "k": 1, "opponent": "tiny", "win": 2, "tie": 1, "loss": 1},
        {"version": "v1", "k": 4, "opponent": "tiny", "win": 1, "tie": 0, "loss": 0},
    ]
    assert (found.feedback, found.first, found.last) == (1, start, start + timedelta(hours=3))


async def test_stats_of_an_empty_log(database: Database) -> None:
    found = await stats(database)
    assert (found.groups, found.candidates, found.mean_margin, found.first) == (0, 0, None, None)


async def test_purge_deletes_by_age_and_user_with_everything_that_hangs_on_it(database: Database, log: PairLog) -> None:
    now = datetime.now(UTC)
    groups = [scored_group(i, time=now - timedelta(days=i), user=f"user {i % 2}\0") for i in range(10)]
    for group in groups:
        await log.append(group)
        await log.append_feedback(Feedback(group.id, now, score=1.0))
        await log.append_comparison(Comparison(group.id, now, "v1", "tiny", "helpful", "1", 1.0, 0.0))
    old = now - timedelta(days=4.5)
    assert await count_purgeable(database, Conditions(old, "user 1\0")) == 3
    assert await purge(database, Conditions(old, "user 1\0")) == 3
    assert await purge(database, Conditions(older_than=old)) == 2
    assert await purge(database, Conditions(user="user 0\0")) == 3
    left = [group for group in groups if await log.group(group.id) is not None]
    assert left == [groups[1], groups[3]]
    found = await stats(database)
    assert (found.candidates, found.feedback, found.comparisons[0]["win"]) == (8, 2, 2)


async def test_purge_needs_a_condition_and_tells_how_far_it_is(database: Database, log: PairLog) -> None:
    with pytest.raises(ValueError, match="no condition"):
        await purge(database, Conditions())
    await fill(log, 5, user="me")
    told: list[int] = []
    assert await purge(database, Conditions(user="me"), progress=told.append, chunk=2) == 5
    assert told == [2, 4, 5]
    assert await purge(database, Conditions(user="me")) == 0


async def test_nothing_of_a_purged_group_stays_in_the_files(database: Database, log: PairLog) -> None:
    if database.url.get_backend_name() != "sqlite":
        pytest.skip("PostgreSQL's vacuum does this")
    canary = "canary-4711"
    group = scored_group(user=canary, metadata={"word": canary}, request_id=canary)
    await log.append(group)
    assert database.url.database is not None
    files = [open(f"{database.url.database}{end}", "rb") for end in ("", "-wal")]  # noqa: SIM115
    assert any(canary.encode() in file.read() for file in files)
    await purge(database, Conditions(user=canary))
    await database.overwrite_deleted()
    for file in files:
        file.seek(0)
        assert canary.encode() not in file.read()
        file.close()
