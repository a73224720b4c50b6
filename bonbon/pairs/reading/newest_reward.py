"""Finds the reward that scored last, which is the one that training uses."""

from collections.abc import Iterable

from sqlalchemy import select

from bonbon.pairs.reading.reader import RewardKey, Tenants, trainable
from bonbon.store.database import Database
from bonbon.store.tables import earlier_scores, groups

_REWARD = groups.c.reward_name, groups.c.reward_version


async def newest_reward(
    database: Database, version: str, *, after: str | None = None, tenants: Tenants = None
) -> RewardKey | None:
    """Returns the reward that last scored a trainable group of `version`, when it was logged or later."""
    usable = trainable(version, after, tenants)
    logged = select(*_REWARD, groups.c.time).where(usable).order_by(groups.c.id.desc()).limit(1)
    rescored = (
        select(*_REWARD, earlier_scores.c.replaced.label("time"))
        .join_from(earlier_scores, groups)
        .where(usable, earlier_scores.c.version == version)
        .order_by(earlier_scores.c.id.desc())
        .limit(1)
    )
    async with database.read(bulk=True) as connection:
        found = [(await connection.execute(query)).one_or_none() for query in (logged, rescored)]
    newest = max((row for row in found if row is not None), key=lambda row: row.time, default=None)
    return None if newest is None else RewardKey(newest.reward_name, newest.reward_version)


async def newest_reward_of(
    database: Database, versions: Iterable[str], *, after: str | None = None, tenants: Tenants = None
) -> RewardKey | None:
    """Returns `newest_reward` of the last of `versions` that has such groups."""
    found = None
    for version in versions:
        found = await newest_reward(database, version, after=after, tenants=tenants) or found
    return found
