"""Conditions that select the groups to delete."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_

from bonbon.store.storable_text import clean_text
from bonbon.store.tables import groups


@dataclass(frozen=True, slots=True)
class Conditions:
    """Selects groups that meet every given condition. Its text ends a sentence such as "delete 5 groups"."""

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
        """Returns the conditions as a clause on the table of groups. Raises ValueError when none is given."""
        clauses: list[ColumnElement[bool]] = []
        if self.older_than is not None:
            clauses.append(groups.c.time < self.older_than)
        named = (groups.c.end_user, self.user), (groups.c.request_id, self.request_id), (groups.c.tenant, self.tenant)
        clauses += [column == clean_text(value) for column, value in named if value is not None]
        if not clauses:
            raise ValueError("no condition is given")
        return and_(*clauses)

    def meet(self, time: datetime, user: str | None, request_id: str | None, tenant: str | None) -> bool:
        """Returns whether a group with these properties meets every condition. An unknown property meets none."""
        named = (self.user, user), (self.request_id, request_id), (self.tenant, tenant)
        if self.older_than is not None and time >= self.older_than:
            return False
        return all(
            wanted is None or (isinstance(given, str) and clean_text(given) == clean_text(wanted))
            for wanted, given in named
        )
