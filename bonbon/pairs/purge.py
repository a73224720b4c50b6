"""Deletes groups, with everything that hangs on them."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, func, select

from bonbon.database import Database
from bonbon.tables import clean_text, groups

CHUNK = 1000


async def count_purgeable(database: Database, *, older_than: datetime | None = None, user: str | None = None) -> int:
    """How many groups `purge` would delete now."""
    query = select(func.count()).select_from(groups).where(_condition(older_than, user))
    async with database.read() as connection:
        return int((await connection.execute(query)).scalar_one())


async def purge(
    database: Database,
    *,
    older_than: datetime | None = None,
    user: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Delete groups older than a time, or of one end user, or both conditions together; how many.

    Candidates, comparisons and feedback go with their groups, and nothing of them stays readable in SQLite's files.
    Small transactions let writers through.

    Args:
        progress: called with the number of groups deleted so far.

    Raises:
        ValueError: neither condition is given.
    """
    query = select(groups.c.id).where(_condition(older_than, user)).limit(CHUNK)
    deleted = 0
    while True:
        async with database.write() as connection:
            ids = (await connection.execute(query)).scalars().all()
            await connection.execute(delete(groups).where(groups.c.id.in_(ids)))
        deleted += len(ids)
        if progress is not None:
            progress(deleted)
        if len(ids) < CHUNK:
            break
    if deleted:
        await database.overwrite_deleted()
    return deleted


def _condition(older_than: datetime | None, user: str | None) -> ColumnElement[bool]:
    if older_than is None and user is None:
        raise ValueError("purge needs older_than or user")
    conditions: list[ColumnElement[bool]] = []
    if older_than is not None:
        conditions.append(groups.c.time < older_than)
    if user is not None:
        conditions.append(groups.c.end_user == clean_text(user))
    return and_(*conditions)
