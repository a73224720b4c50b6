"""Finds the versions that were trained on given groups."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.reading.reader import of_tenants, trainable
from bonbon.pairs.rescoring.earlier_scores import was_trainable_by
from bonbon.registry.next_round import started_from
from bonbon.store.database import Database
from bonbon.store.tables import groups, versions
from bonbon.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Lineage:
    """`trained`: versions whose snapshot holds some of the groups. `descended`: versions trained from those."""

    trained: tuple[str, ...]
    descended: tuple[str, ...]


async def lineage(database: Database, conditions: Conditions) -> Lineage:
    """Returns the versions that were trained on groups which `purge` deletes. Call it before `purge`.

    A version's snapshot holds the groups drawn from its base and from the version that its training started from, from
    the first to the last one, if its reward scored them, now or before another reward scored them again.
    """
    chosen = conditions.clause
    columns = versions.c.name, versions.c.base, versions.c.parent, versions.c.training
    query = select(*columns).order_by(versions.c.created)
    trained: list[str] = []
    descended: list[str] = []
    async with database.read(bulk=True) as connection:
        for name, base, parent, training in (await connection.execute(query)).all():
            if "last_group" in training and await _has(connection, chosen, base, training):
                trained.append(name)
            elif parent in trained or parent in descended:
                descended.append(name)
    return Lineage(tuple(trained), tuple(descended))


async def _has(connection: Transaction, chosen: ColumnElement[bool], base: str, training: dict[str, Any]) -> bool:
    samplers = [started_from(training)]
    # Older releases trained on the draws of a single version.
    if "start" in training:
        samplers.append(base)
    name, version = training["reward"]["name"], training["reward"]["version"]
    now = and_(trainable(None, None), groups.c.reward_name == name, groups.c.reward_version == version)
    query = select(groups.c.id).where(
        chosen,
        of_tenants(training.get("settings", {}).get("tenants")),
        or_(now, was_trainable_by(name, version)),
        groups.c.version.in_(samplers),
        groups.c.id.between(training["first_group"], training["last_group"]),
    )
    return (await connection.execute(query.limit(1))).first() is not None
