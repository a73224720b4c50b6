"""Records what was deleted from the log on purpose, so that groups arriving late from a spool stay deleted."""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256

from sqlalchemy import insert, select

from bonbon.ids import time_ordered_id
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_records import Group
from bonbon.store.storable_text import clean_text
from bonbon.store.tables import erasures
from bonbon.store.transaction import Transaction


async def note_erasure(connection: Transaction, conditions: Conditions) -> None:
    """Records an erasure. User names and request ids are stored as digests, because this must not be a record of
    persons.
    """
    row = {
        "id": time_ordered_id(),
        "time": datetime.now(UTC),
        "older_than": conditions.older_than,
        "user_digest": _digest(conditions.user),
        "request_digest": _digest(conditions.request_id),
        "tenant": conditions.tenant,
    }
    await connection.execute(insert(erasures), [row])


async def without_erased(connection: Transaction, groups: Sequence[Group]) -> list[Group]:
    """Returns those of `groups` that no later erasure covers."""
    if not groups:
        return []
    first = min(group.time for group in groups)
    query = select(erasures).where(erasures.c.time >= first)
    found = (await connection.execute(query)).mappings().all()
    return [group for group in groups if not any(_meets(group, dict(erasure)) for erasure in found)]


def _meets(group: Group, erasure: dict[str, object]) -> bool:
    older_than, time = erasure["older_than"], erasure["time"]
    assert isinstance(time, datetime)
    if group.time > time or (isinstance(older_than, datetime) and group.time >= older_than):
        return False
    wanted = {
        "user_digest": _digest(group.user),
        "request_digest": _digest(group.request_id),
        "tenant": clean_text(group.tenant),
    }
    return all(erasure[name] in (None, value) for name, value in wanted.items())


def _digest(name: str | None) -> str | None:
    return None if name is None else sha256(clean_text(name).encode()).hexdigest()
