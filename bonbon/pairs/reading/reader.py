"""Reads the pair log: preference pairs, and which groups are clean or trainable."""

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Subquery, and_, bindparam, func, literal, or_, select, true
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from bonbon.pairs.group_records import Unclean
from bonbon.pairs.group_rows import prompt_of
from bonbon.prompt import Prompt
from bonbon.store.database import Database
from bonbon.store.storable_text import clean_text
from bonbon.store.tables import candidates, groups

CHUNK = 500
Tenants = Collection[str] | None
# Created once: an alias copies every column, in reference cycles that accumulate if each query creates its own.
BEST, WORST = candidates.alias("best"), candidates.alias("worst")


class RewardKey(NamedTuple):
    """A reward's name and version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The best and the worst candidate of one clean group: sampled tokens and their summed log-probabilities, in
    nats."""

    group_id: str
    time: datetime
    version: str
    prompt: Prompt
    prompt_digest: str
    prompt_token_ids: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    chosen_text: str
    rejected_text: str
    chosen_reward: float
    rejected_reward: float
    chosen_logprob: float
    rejected_logprob: float
    n: int
    temperature: float
    max_tokens: int
    reward: RewardKey


async def count_clean(
    database: Database,
    version: str | None,
    *,
    after: str | None = None,
    tenants: Tenants = None,
    own_rewards: bool = False,
    reward: RewardKey | None = None,
    limit: int | None = None,
) -> int:
    """Returns the number of groups that `clean` selects, of `version` (None: any), scored by `reward` (None: any).

    The count stops at `limit`.
    """
    found = clean(version, after, tenants, own_rewards)
    return await _count(database, found if reward is None else and_(found, scored_by(reward)), limit)


async def count_trainable(
    database: Database, version: str, reward: RewardKey, *, tenants: Tenants = None, limit: int | None = None
) -> int:
    """Returns the number of groups of `version` that `trainable` selects, scored by `reward`. The count stops at
    `limit`.
    """
    return await _count(database, and_(trainable(version, None, tenants), scored_by(reward)), limit)


async def trainable_tenants(database: Database, version: str, *, after: str | None = None) -> list[str]:
    """Returns the tenants whose groups of `version` may be trained on."""
    query = select(groups.c.tenant).where(trainable(version, after)).distinct().order_by(groups.c.tenant)
    async with database.read(bulk=True) as connection:
        return list((await connection.execute(query)).scalars())


async def pairs(
    database: Database,
    *,
    version: str | None,
    after: str | None = None,
    tenants: Tenants = None,
    own_rewards: bool = False,
    chunk: int = CHUNK,
) -> AsyncGenerator[Pair]:
    """Yields the pairs of the clean groups of `version` and of `tenants` (None: all), oldest first, in constant memory.

    With `own_rewards`, includes groups that are unclean only because their tenant's own reward ranked them.
    """
    query, last = _pairs_query(version, tenants, chunk, own_rewards), after or ""
    while True:
        async with database.read(bulk=True) as connection:
            rows = (await connection.execute(query.params(after=last))).mappings().all()
        for row in rows:
            if row["chosen_reward"] > row["rejected_reward"]:  # always true for a clean group
                yield _pair(row)
        if len(rows) < chunk:
            return
        last = rows[-1]["group_id"]


async def logged_versions(database: Database) -> list[str]:
    """Returns the names of the versions that have groups in the log, sorted."""
    query = select(groups.c.version).distinct().order_by(groups.c.version)
    async with database.read(bulk=True) as connection:
        return list((await connection.execute(query)).scalars())


def clean(
    version: str | None, after: str | None, tenants: Tenants = None, own_rewards: bool = False
) -> ColumnElement[bool]:
    """Selects clean groups of `version` and `tenants` (None: all), newer than the group `after`.

    With `own_rewards`, includes groups that their tenant's own reward ranked.
    """
    ranked = groups.c.unclean.is_(None)
    conditions = [or_(ranked, groups.c.unclean == Unclean.REWARD) if own_rewards else ranked, of_tenants(tenants)]
    if version is not None:
        conditions.append(groups.c.version == version)
    if after is not None:
        conditions.append(groups.c.id > after)
    return and_(*conditions)


def trainable(version: str | None, after: str | None, tenants: Tenants = None) -> ColumnElement[bool]:
    """Selects groups of two or more scored draws of a version's own distribution, including tied ones.

    A tied group makes no pair, but it shows that more draws gain nothing for its prompt. Leaving it out would overstate
    the gain of best-of-n.
    """
    # A literal in the statement: with a parameter, a planner cannot tell that the partial index applies.
    tied = groups.c.unclean == literal(str(Unclean.TIED), literal_execute=True)
    conditions: list[ColumnElement[bool]] = [or_(groups.c.unclean.is_(None), tied), of_tenants(tenants)]
    if version is not None:
        conditions.append(groups.c.version == version)
    if after is not None:
        conditions.append(groups.c.id > after)
    return and_(*conditions)


def of_tenants(tenants: Tenants) -> ColumnElement[bool]:
    """Selects groups of `tenants`; None for all."""
    return true() if tenants is None else groups.c.tenant.in_([clean_text(tenant) for tenant in tenants])


def scored_by(reward: RewardKey) -> ColumnElement[bool]:
    """Selects groups that this reward scored."""
    return and_(groups.c.reward_name == reward.name, groups.c.reward_version == reward.version)


def next_clean(version: str | None, tenants: Tenants, chunk: int, own_rewards: bool = False) -> Subquery:
    """Returns the next `chunk` clean groups with ids above the parameter `after`, to be joined with their
    candidates."""
    # Groups are selected before the join, because a planner that joins first reads all candidates again for every
    # chunk.
    return (
        select(groups)
        .where(clean(version, None, tenants, own_rewards), groups.c.id > bindparam("after"))
        .order_by(groups.c.id)
        .limit(chunk)
        .subquery()
    )


async def _count(database: Database, condition: ColumnElement[bool], limit: int | None) -> int:
    query = select(func.count()).select_from(select(groups.c.id).where(condition).limit(limit).subquery())
    async with database.read(bulk=True) as connection:
        return int((await connection.execute(query)).scalar_one())


def _pairs_query(version: str | None, tenants: Tenants, chunk: int, own_rewards: bool) -> Select[Any]:
    """Returns the pairs of the next `chunk` clean groups with ids above the parameter `after`."""
    chosen = next_clean(version, tenants, chunk, own_rewards).c
    columns = [
        column
        for side, name in ((BEST, "chosen"), (WORST, "rejected"))
        for column in (
            side.c.token_ids.label(name),
            side.c.text.label(f"{name}_text"),
            side.c.reward.label(f"{name}_reward"),
            side.c.logprob.label(f"{name}_logprob"),
        )
    ]
    query = select(
        chosen.id.label("group_id"),
        chosen.time,
        chosen.version,
        chosen.prompt,
        chosen.prompt_digest,
        chosen.prompt_token_ids,
        chosen.n,
        chosen.temperature,
        chosen.max_tokens,
        chosen.reward_name,
        chosen.reward_version,
        *columns,
    )
    return with_pair(query, chosen).order_by(chosen.id)


def with_pair(query: Select[Any], group: ReadOnlyColumnCollection[str, Any]) -> Select[Any]:
    """Joins a query on groups with these columns with the best and the worst candidate of each."""
    return query.join(BEST, and_(BEST.c.group_id == group.id, BEST.c.rank == group.n)).join(
        WORST, and_(WORST.c.group_id == group.id, WORST.c.rank == 1)
    )


def _pair(row: Any) -> Pair:
    fields = dict(row)
    reward = RewardKey(fields.pop("reward_name"), fields.pop("reward_version"))
    return Pair(reward=reward, prompt=prompt_of(fields.pop("prompt")), **fields)
