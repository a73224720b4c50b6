"""Deletes groups with everything that belongs to them."""

from collections.abc import Callable

from sqlalchemy import delete, func, select

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.erasures import note_erasure
from bonbon.store.database import Database
from bonbon.store.tables import groups

CHUNK = 1000


async def count_purgeable(database: Database, conditions: Conditions) -> int:
    """Returns how many groups `purge` would delete now."""
    query = select(func.count()).select_from(groups).where(conditions.clause)
    async with database.read(bulk=True) as connection:
        return int((await connection.execute(query)).scalar_one())


async def purge(database: Database, conditions: Conditions, *, progress: Callable[[int], None] | None = None) -> int:
    """Deletes the groups that meet the conditions and returns how many.

    Candidates, comparisons and feedback are deleted with their groups. `Database.overwrite_deleted` then removes their
    traces from SQLite's files. Groups that were answered earlier and arrive later, from a spool, are not stored. The
    transactions are small, so that other writers get their turn.

    Args:
        progress: Called with the number of groups deleted so far.

    Raises:
        ValueError: No condition is given.
    """
    query = select(groups.c.id).where(conditions.clause).limit(CHUNK)
    async with database.write() as connection:
        await note_erasure(connection, conditions)
    deleted = 0
    while True:
        async with database.write(bulk=True) as connection:
            ids = (await connection.execute(query)).scalars().all()
            await connection.execute(delete(groups).where(groups.c.id.in_(ids)))
        deleted += len(ids)
        if progress is not None:
            progress(deleted)
        if len(ids) < CHUNK:
            break
    return deleted
