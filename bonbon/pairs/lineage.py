"""Which versions learnt from which groups."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select

from bonbon.database import Database
from bonbon.pairs.conditions import Conditions
from bonbon.pairs.reader import trainable
from bonbon.registry.due import started_from
from bonbon.tables import groups, versions
from bonbon.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Lineage:
    """`trained`: versions whose snapshot has some of the groups; `descended`: those that were trained from them."""

    trained: tuple[str, ...]
    descended: tuple[str, ...]


async def lineage(database: Database, conditions: Conditions) -> Lineage:
    """What learnt from the groups that `purge` deletes: to be asked before it does.

    A version's snapshot has the groups that its base and the version that its training started from have drawn, from
    the first to the last one, as far as its reward scored them.
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
    # Older releases trained on what one version had drawn.
    if "start" in training:
        samplers.append(base)
    query = select(groups.c.id).where(
        chosen,
        trainable(None, None, training.get("settings", {}).get("tenants")),
        groups.c.version.in_(samplers),
        groups.c.reward_name == training["reward"]["name"],
        groups.c.reward_version == training["reward"]["version"],
        groups.c.id.between(training["first_group"], training["last_group"]),
    )
    return (await connection.execute(query.limit(1))).first() is not None
