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


async def purge(
    database: Database,
    conditions: Conditions,
    *,
    progress: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
) -> int:
    """Deletes the groups that meet the conditions and returns how many.

    Candidates, comparisons and feedback are deleted with their groups. `Database.overwrite_deleted` then removes their
    traces from SQLite's files. Groups that were answered earlier and arrive later, from a spool, are not stored. The
    transactions are small, so that other writers get their turn, and each goes on at the time that the one before has
    reached: PostgreSQL keeps what is deleted in its tables and indexes until vacuum, and would read all of it again for
    every transaction.

    Args:
        progress: Called with the number of groups deleted so far.
        chunk: Number of groups deleted in one transaction.

    Raises:
        ValueError: No condition is given.
    """
    query = select(groups.c.id, groups.c.time).where(conditions.clause).order_by(groups.c.time).limit(chunk)
    async with database.write() as connection:
        await note_erasure(connection, conditions)
    deleted, rest = 0, query
    while True:
        async with database.write(bulk=True) as connection:
            rows = (await connection.execute(rest)).all()
            await connection.execute(delete(groups).where(groups.c.id.in_([row.id for row in rows])))
        deleted += len(rows)
        if progress is not None:
            progress(deleted)
        if len(rows) < chunk:
            return deleted
        rest = query.where(groups.c.time >= rows[-1].time)
