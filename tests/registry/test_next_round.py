"""Tests of the start of the next round: it waits for more groups while it can lower k, and never starts at one draw."""

from pathlib import Path
from typing import Any

import pytest

from bonbon.pairs.pair_log import PairLog
from bonbon.registry.next_round import NextRound, next_round
from bonbon.registry.registry import Registry
from bonbon.settings import Settings
from bonbon.store.database import Database
from tests.support.data.groups import scored_group
from tests.support.service.running_service import new_version

BASE = "tiny"
SETTINGS = Settings(loop={"min_groups": 4})


@pytest.fixture
async def registry(database: Database, tmp_path: Path) -> Registry:
    registry = Registry(database, tmp_path / "versions")
    await registry.register_base(BASE, None)
    await registry.promote(BASE)
    return registry


async def log(registry: Registry, version: str, count: int, **changes: Any) -> str:
    """Logs `count` groups of `version` and returns the last one's id."""
    pair_log = PairLog(registry.database)
    await pair_log.start()
    for number in range(count):
        group = scored_group(number, version=version, **changes)
        await pair_log.append(group)
    await pair_log.stop()
    return group.id


async def upcoming(registry: Registry) -> NextRound:
    champion = await registry.champion()
    assert champion is not None
    return await next_round(registry, await registry.get(champion), SETTINGS)


async def trained(registry: Registry, weights: int, *, start: str, groups: int, last: str) -> str:
    training = {"start": start, "groups": groups, "last_group": last}
    return (await new_version(registry, weights, base=BASE, parent=start, training=training)).name


async def test_a_round_of_the_base_waits_for_so_many_groups(registry: Registry) -> None:
    await log(registry, BASE, 3)
    waiting = await upcoming(registry)
    assert not waiting.is_ready
    assert waiting.waits_for == f"The next round waits for 1 more clean group of {BASE} (3 of 4)."
    await log(registry, BASE, 1)
    assert (await upcoming(registry)).is_ready


async def test_the_count_stops_where_more_groups_say_nothing_more(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log(registry, BASE, 6)
    monkeypatch.setattr("bonbon.registry.next_round.MAX_COUNTED", 5)
    assert (await upcoming(registry)).groups == 5
    monkeypatch.setattr("bonbon.registry.next_round.MAX_COUNTED", 2)
    stopped = await upcoming(registry)
    assert (stopped.groups, stopped.is_ready) == (4, True)


async def test_after_one_that_was_refused_the_next_waits_for_twice_as_many(registry: Registry) -> None:
    last = await log(registry, BASE, 6)
    name = await trained(registry, 1, start=BASE, groups=6, last=last)
    await registry.refuse(name, {"passed": False, "reasons": []})
    await log(registry, BASE, 5)
    waiting = await upcoming(registry)
    assert (waiting.groups, waiting.needed, waiting.is_ready) == (5, 6, False)
    assert "(5 of 6, because the last round learned too little from 6)" in waiting.waits_for
    await log(registry, BASE, 1)
    assert (await upcoming(registry)).is_ready


async def test_where_one_draw_answers_none_begins_by_itself_until_more_have_to(registry: Registry) -> None:
    last = await log(registry, BASE, 6)
    name = await trained(registry, 1, start=BASE, groups=6, last=last)
    await registry.approve(name, {"passed": True, "reasons": [], "k": 1})
    await registry.promote(name)
    await log(registry, name, 8)
    none = await upcoming(registry)
    assert (none.champion, none.needed, none.is_ready) == (name, None, False)
    assert none.waits_for.startswith(f"No round starts automatically: {name} answers with one draw")
    await registry.raise_k(name, 2, actor="test", reason="to see")
    assert (await upcoming(registry)).is_ready
    await registry.promote(name)
    assert not (await upcoming(registry)).is_ready
    await registry.fall_back(name, name, actor="test", reason="to see")
    assert (await upcoming(registry)).is_ready


async def test_a_new_reward_makes_groups_count_that_a_round_by_another_one_was_trained_on(registry: Registry) -> None:
    """The round scores these groups again; with `train.rescore` off, only groups scored by the new reward count."""
    last = await log(registry, BASE, 6)
    reward = {"name": "helpful", "version": "1"}
    training = {"start": BASE, "groups": 6, "last_group": last, "reward": reward}
    version = await new_version(registry, 1, base=BASE, parent=BASE, training=training)
    await registry.refuse(version.name, {"passed": False, "reasons": []})
    await log(registry, BASE, 1)
    waiting = await upcoming(registry)
    assert (waiting.groups, waiting.needed) == (1, 6)
    await log(registry, BASE, 1, reward_version="2")
    begins = await upcoming(registry)
    assert (begins.groups, begins.needed, begins.is_ready) == (8, 4, True)
    without = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"rescore": False})})
    waiting = await next_round(registry, await registry.get(BASE), without)
    assert (waiting.groups, waiting.needed, waiting.is_ready) == (1, 4, False)
