"""Which versions learnt from which groups."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, select

from bonbon.database import Database
from bonbon.pairs.conditions import Conditions
from bonbon.tables import groups, versions
from bonbon.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Lineage:
    """`trained`: versions whose snapshot has some of the groups; `descended`: those that were trained from them."""

    trained: tuple[str, ...]
    descended: tuple[str, ...]


async def lineage(database: Database, conditions: Conditions) -> Lineage:
    """What learnt from the groups that `purge` deletes: to be asked before it does.

    A version's snapshot is the clean groups of its sampler, from its first to its last group, that its reward scored.
    """
    chosen = conditions.clause
    query = select(versions.c.name, versions.c.parent, versions.c.training).order_by(versions.c.created)
    trained: list[str] = []
    descended: list[str] = []
    async with database.read(bulk=True) as connection:
        for name, parent, training in (await connection.execute(query)).all():
            if "last_group" in training and await _has(connection, chosen, training):
                trained.append(name)
            elif parent in trained or parent in descended:
                descended.append(name)
    return Lineage(tuple(trained), tuple(descended))


async def _has(connection: Transaction, chosen: ColumnElement[bool], training: dict[str, Any]) -> bool:
    if (tenants := training.get("settings", {}).get("tenants")) is not None:
        chosen = and_(chosen, groups.c.tenant.in_(tenants))
    query = select(groups.c.id).where(
        chosen,
        groups.c.unclean.is_(None),
        groups.c.version == training["sampler"],
        groups.c.reward_name == training["reward"]["name"],
        groups.c.reward_version == training["reward"]["version"],
        groups.c.id.between(training["first_group"], training["last_group"]),
    )
    return (await connection.execute(query.limit(1))).first() is not None
