"""Selects the groups of the pair log that belong together in a best-of-k curve."""

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func, select

from bonbon.errors import UserError
from bonbon.pairs.reading.newest_reward import newest_reward
from bonbon.pairs.reading.reader import RewardKey, trainable
from bonbon.pairs.reading.scored_groups import Kind
from bonbon.store.database import Database
from bonbon.store.tables import groups


@dataclass(frozen=True, slots=True)
class Selection:
    """The groups of a curve: `groups` groups of `kind`, or with more candidates, that are newer than the group `after`.

    `smaller` counts groups of the same version and reward that have too few candidates.
    """

    kind: Kind
    groups: int
    smaller: int
    after: str | None


async def select_groups(
    database: Database, *, version: str | None = None, n: int | None = None, newest: int | None = None
) -> Selection:
    """Selects the groups of a curve.

    By default, these are the groups of the version with the most groups, of the reward that scored last, and of the
    most frequent n. Groups with more candidates are used for every smaller k.

    Args:
        newest: Consider only this many of the log's newest groups.

    Raises:
        UserError: There are no matching groups.
    """
    after = await _nth_newest(database, newest) if newest else None
    found = await _holdings(database, version, after)
    if not found:
        whose = f" of version {version!r}" if version else ""
        raise UserError(
            f"the pair log has no scored group of two or more draws{whose}; send requests with best_of, and see "
            "`bonbon pairs stats` for what it has"
        )
    counts: Counter[str] = Counter()
    for holding in found:
        counts[holding.kind.version] += holding.groups
    version = max(counts, key=lambda name: (counts[name], name))
    own = [holding for holding in found if holding.kind.version == version]
    reward = await newest_reward(database, version, after=after) or own[0].kind.reward
    sizes = {holding.kind.n: holding.groups for holding in own if holding.kind.reward == reward}
    n = n or max(sizes, key=lambda size: (sizes[size], size))
    large = sum(count for size, count in sizes.items() if size >= n)
    if large < 2:
        raise UserError(
            f"a curve up to n = {n} needs two groups with as many candidates, {version} has {large}; it has groups of "
            + ", ".join(f"{size} ({count})" for size, count in sorted(sizes.items())),
            param="n",
        )
    return Selection(Kind(version, reward, n), large, sum(sizes.values()) - large, after)


@dataclass(frozen=True, slots=True)
class _Holding:
    """The number of groups of a kind."""

    kind: Kind
    groups: int


async def _holdings(database: Database, version: str | None, after: str | None) -> list[_Holding]:
    key = (groups.c.version, groups.c.reward_name, groups.c.reward_version, groups.c.n)
    query = select(*key, func.count()).where(trainable(version, after)).group_by(*key)
    async with database.read(bulk=True) as connection:
        rows = (await connection.execute(query)).all()
    return [_Holding(Kind(row[0], RewardKey(row[1], row[2]), row[3]), row[4]) for row in rows]


async def _nth_newest(database: Database, count: int) -> str | None:
    query = select(groups.c.id).order_by(groups.c.id.desc()).offset(count).limit(1)
    async with database.read(bulk=True) as connection:
        return (await connection.execute(query)).scalar_one_or_none()
