"""Stores groups in the database's tables."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import Connection, insert, select

from bonbon.errors import StoreError, StoreUnavailable
from bonbon.pairs.group_records import Group
from bonbon.pairs.group_rows import candidate_rows, group_row
from bonbon.pairs.health import Health
from bonbon.store.database import Database, insert_new
from bonbon.store.tables import candidates, groups

MAX_REFUSALS = 10
"""Consecutive refusals, with no group stored, after which the rest is not offered because the database is at fault."""


class Kept(StrEnum):
    """Where a group is when `append` returns."""

    LOGGED = "logged"  # in the database
    SPOOLED = "spooled"  # on disk, until the database accepts it
    REPEATED = "repeated"  # not stored, because another group has the same idempotency key
    DROPPED = "dropped"  # lost: neither database nor spool accepted it, and the settings allow that


async def store_groups(database: Database, new: Sequence[Group]) -> dict[str, Kept]:
    """Stores groups in one transaction and returns where each is now, by id. Storing an id again does nothing.

    Raises StoreError for anything that cannot be stored, and then stores none of the groups.
    """
    by_id = {group.id: group for group in reversed(new)}
    try:
        return await database.transact(lambda connection: _insert(connection, by_id)) if by_id else {}
    except StoreError:
        raise
    except Exception as error:
        # Drivers have their own errors for values that they cannot convert.
        raise StoreError(f"the groups cannot be stored: {type(error).__name__}", why=type(error).__name__) from error


def _insert(connection: Connection, by_id: dict[str, Group]) -> dict[str, Kept]:
    insertion = insert_new(groups, connection.dialect).returning(groups.c.id)
    inserted = set(connection.execute(insertion, [group_row(group) for group in by_id.values()]).scalars())
    rows = [row for group_id in inserted for row in candidate_rows(by_id[group_id])]
    if rows:
        connection.execute(insert(candidates), rows)
    late = [i for i, group in by_id.items() if i not in inserted and group.idempotency is not None]
    there: set[str] = set()
    if late:
        there = set(connection.execute(select(groups.c.id).where(groups.c.id.in_(late))).scalars())
    return {i: Kept.REPEATED if i in late and i not in there else Kept.LOGGED for i in by_id}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A group that the database refused when it was offered alone, and the number of groups stored before."""

    group: Group
    error: StoreError
    taken: int


@dataclass(slots=True)
class Offer:
    """The result of offering groups: where the stored ones are, and which were refused.

    Groups in neither were not offered alone; `error` is then the reason why the database stored nothing.
    """

    kept: dict[str, Kept] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    error: StoreError | None = None

    @property
    def hopeless(self) -> bool:
        """Whether the database would refuse all other groups as well."""
        return isinstance(self.error, StoreUnavailable) or (len(self.refused) >= MAX_REFUSALS and not self.kept)


Store = Callable[[Sequence[Group]], Awaitable[dict[str, Kept]]]


async def offer(new: Sequence[Group], store: Store, health: Health) -> Offer:
    """Stores groups with `store`, halving a refused batch until a single group is refused."""
    found = Offer()
    await _offer(new, store, health, found)
    return found


async def _offer(new: Sequence[Group], store: Store, health: Health, found: Offer) -> None:
    if not new or found.hopeless:
        return
    try:
        found.kept |= await store(new)
    except StoreError as error:
        found.error = error
        if len(new) == 1:
            found.refused.append(Refusal(new[0], error, health.taken))
        half = len(new) // 2
        for part in (new[:half], new[half:]) if half else ():
            await _offer(part, store, health, found)
    else:
        health.took()
