"""Deletes groups, with everything that hangs on them."""

from collections.abc import Callable

from sqlalchemy import delete, func, select

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.erasures import note_erasure
from bonbon.store.database import Database
from bonbon.store.tables import groups

CHUNK = 1000


async def count_purgeable(database: Database, conditions: Conditions) -> int:
    """How many groups `purge` would delete now."""
    query = select(func.count()).select_from(groups).where(conditions.clause)
    async with database.read(bulk=True) as connection:
        return int((await connection.execute(query)).scalar_one())


async def purge(database: Database, conditions: Conditions, *, progress: Callable[[int], None] | None = None) -> int:
    """Delete the groups that meet the conditions; how many.

    Candidates, comparisons and feedback go with their groups; `Database.overwrite_deleted` then removes what SQLite's
    files still have of them. What was answered before and comes later, from a spool, is left out.
    Small transactions let writers through.

    Args:
        progress: called with the number of groups deleted so far.

    Raises:
        ValueError: no condition is given.
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
