"""Deletes groups, with everything that hangs on them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, func, select

from bonbon.database import Database
from bonbon.tables import clean_text, groups

CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which groups: those that meet every condition given. As text it ends the sentence "delete 5 groups"."""

    older_than: datetime | None = None
    user: str | None = None
    request_id: str | None = None
    tenant: str | None = None

    def __str__(self) -> str:
        age = "" if self.older_than is None else f" older than {self.older_than:%Y-%m-%d %H:%M} UTC"
        names = {"user": self.user, "request": self.request_id, "tenant": self.tenant}
        return age + "".join(f" of {kind} {name!r}" for kind, name in names.items() if name is not None)

    @property
    def clause(self) -> ColumnElement[bool]:
        """The same on the table of groups. Raises ValueError when there is none: it would mean every group."""
        clauses: list[ColumnElement[bool]] = []
        if self.older_than is not None:
            clauses.append(groups.c.time < self.older_than)
        named = (groups.c.end_user, self.user), (groups.c.request_id, self.request_id), (groups.c.tenant, self.tenant)
        clauses += [column == clean_text(value) for column, value in named if value is not None]
        if not clauses:
            raise ValueError("no condition is given")
        return and_(*clauses)


async def count_purgeable(database: Database, conditions: Conditions) -> int:
    """How many groups `purge` would delete now."""
    query = select(func.count()).select_from(groups).where(conditions.clause)
    async with database.read() as connection:
        return int((await connection.execute(query)).scalar_one())


async def purge(database: Database, conditions: Conditions, *, progress: Callable[[int], None] | None = None) -> int:
    """Delete the groups that meet the conditions; how many.

    Candidates, comparisons and feedback go with their groups, and nothing of them stays readable in SQLite's files.
    Small transactions let writers through.

    Args:
        progress: called with the number of groups deleted so far.

    Raises:
        ValueError: no condition is given.
    """
    query = select(groups.c.id).where(conditions.clause).limit(CHUNK)
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
