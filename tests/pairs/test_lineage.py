"""Tests that find the versions trained on groups that are about to be deleted."""

from pathlib import Path
from typing import Any

import pytest

from bonbon.engines.engine import VersionKind
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_records import Group, Unclean
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.rescoring.rescore import rescore
from bonbon.registry.lineage import lineage
from bonbon.registry.registry import Registry
from bonbon.rewards.fake_reward import FakeReward
from bonbon.store.database import Database
from tests.support.data.groups import scored_group
from tests.support.service.running_service import write_adapter


async def logged(log: PairLog, version: str, user: str, **changes: Any) -> Group:
    group = scored_group(version=version, user=user, **changes)
    await log.append(group)
    return group


async def trained(database: Database, directory: Path, parent: str, first: Group, last: Group, **changes: Any) -> str:
    """Registers a version with the training record of a round, and returns its name."""
    directory.mkdir()
    write_adapter(directory, len(directory.name))
    record = {
        "start": parent,
        "first_group": first.id,
        "last_group": last.id,
        "reward": {"name": "helpful", "version": "1"},
        "settings": {"tenants": None},
    }
    version = await Registry(database, directory.parent / "versions").register(
        base="tiny", parent=parent, kind=VersionKind.ADAPTER, directory=directory, training=record | changes
    )
    return version.name


async def learnt(database: Database, user: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = await lineage(database, Conditions(user=user))
    return found.trained, found.descended


async def test_a_version_learnt_from_groups_of_its_base_and_of_its_start(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    await Registry(database, tmp_path / "versions").register_base("tiny", None)
    first = await logged(log, "tiny", "ada")
    tied = await logged(log, "tiny", "tom", rewards=(1.0, 1.0))
    assert tied.unclean is Unclean.TIED
    one = await trained(database, tmp_path / "one", "tiny", first, tied)
    by_one = await logged(log, one, "bob")
    two = await trained(database, tmp_path / "two", one, first, by_one)
    late = await logged(log, two, "cy")
    assert await learnt(database, "ada") == ((one, two), ()), "every round has the base's groups"
    assert await learnt(database, "tom") == ((one, two), ()), "tied groups are trained on, too"
    assert await learnt(database, "bob") == ((two,), ()), "the groups of the version that it started from"
    assert await learnt(database, "cy") == ((), ()), "logged after the last one that was trained on"
    three = await trained(database, tmp_path / "three", two, late, late)
    assert await learnt(database, "ada") == ((one, two), (three,)), "and its parents had learnt from them"


@pytest.mark.parametrize(
    ("changes", "has_learnt"),
    [
        ({}, True),
        ({"tenant": "other"}, False),
        ({"reward_version": "2"}, False),
        ({"version": "tiny-bonbon-0007"}, False),
        ({"unclean": Unclean.SAMPLING}, False),
    ],
    ids=["it did", "tenant", "reward", "version", "unclean"],
)
async def test_what_a_snapshot_leaves_out_was_not_learnt(
    database: Database, log: PairLog, tmp_path: Path, changes: dict[str, Any], has_learnt: bool
) -> None:
    await Registry(database, tmp_path / "versions").register_base("tiny", None)
    first = await logged(log, "tiny", "ada", tenant="shop")
    await logged(log, **{"version": "tiny", "user": "bob", "tenant": "shop"} | changes)
    last = await logged(log, "tiny", "ada", tenant="shop")
    version = await trained(database, tmp_path / "one", "tiny", first, last, settings={"tenants": ["shop"]})
    assert await learnt(database, "bob") == (((version,) if has_learnt else ()), ())


async def test_a_group_that_was_scored_again_since_was_learnt_all_the_same(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    await Registry(database, tmp_path / "versions").register_base("tiny", None)
    first = await logged(log, "tiny", "ada")
    version = await trained(database, tmp_path / "one", "tiny", first, first)
    await rescore(database, FakeReward())
    assert await learnt(database, "ada") == ((version,), ())


async def test_records_of_older_releases_name_the_one_version_that_drew(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    await Registry(database, tmp_path / "versions").register_base("tiny", None)
    first = await logged(log, "tiny", "ada")
    one = await trained(database, tmp_path / "one", "tiny", first, first)
    group = await logged(log, one, "bob")
    last = await logged(log, "tiny", "cy")
    reward = {"name": "helpful", "version": "1"}
    record = {"sampler": one, "first_group": group.id, "last_group": last.id, "reward": reward}
    version = await Registry(database, tmp_path / "versions").register(
        base="tiny", parent=one, kind=VersionKind.ADAPTER, directory=tmp_path / "one", training=record
    )
    assert await learnt(database, "bob") == ((version.name,), ())
    assert await learnt(database, "cy") == ((), ())
