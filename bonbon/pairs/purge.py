"""Deletes groups, with everything that hangs on them."""

from datetime import datetime

from sqlalchemy import delete, select

from bonbon.database import Database
from bonbon.tables import clean_text, groups

CHUNK = 1000


async def purge(database: Database, *, older_than: datetime | None = None, user: str | None = None) -> int:
    """Delete groups older than a time, or of one end user, or both conditions together; how many.

    Candidates, comparisons and feedback go with their groups. Small transactions let writers through.

    Raises:
        ValueError: neither condition is given.
    """
    if older_than is None and user is None:
        raise ValueError("purge needs older_than or user")
    query = select(groups.c.id).limit(CHUNK)
    if older_than is not None:
        query = query.where(groups.c.time < older_than)
    if user is not None:
        query = query.where(groups.c.end_user == clean_text(user))
    deleted = 0
    while True:
        async with database.write() as connection:
            ids = (await connection.execute(query)).scalars().all()
            await connection.execute(delete(groups).where(groups.c.id.in_(ids)))
        deleted += len(ids)
        if len(ids) < CHUNK:
            return deleted
