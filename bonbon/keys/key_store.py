"""Stores API keys in the database."""

from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import false, insert, or_, select, update

from bonbon.errors import UserError
from bonbon.ids import time_ordered_id
from bonbon.keys.key_records import Key, Scope, digest_of, new_key
from bonbon.store.database import Database
from bonbon.store.tables import keys
from bonbon.store.transaction import Transaction

SHORTEST = 8
"""The shortest prefix of an id that identifies a key."""


async def create_key(
    database: Database,
    name: str,
    *,
    tenant: str = "",
    scopes: Collection[Scope] = (Scope.COMPLETE, Scope.FEEDBACK),
    expires: datetime | None = None,
) -> tuple[Key, str]:
    """Creates a key and returns its record and the key, which cannot be read again. Raises UserError without scopes."""
    if not scopes:
        raise UserError("a key without a scope allows nothing; give at least one", param="scopes")
    key = new_key()
    record = Key(time_ordered_id(), name, tenant, frozenset(scopes), digest_of(key), datetime.now(UTC), expires)
    async with database.write() as connection:
        await connection.execute(insert(keys), [_row(record)])
    return record, key


async def all_keys(database: Database) -> list[Key]:
    """Returns every record, oldest first, including revoked and expired keys."""
    async with database.read() as connection:
        rows = (await connection.execute(select(keys).order_by(keys.c.id))).mappings().all()
    return [_key(dict(row)) for row in rows]


async def revoke_key(database: Database, key: str) -> Key:
    """Revokes the key with this name, id or prefix of an id, with immediate effect.

    Raises UserError when there is no such key, or there are several.
    """
    async with database.write() as connection:
        found = await _find(connection, key)
        revoked = found.revoked or datetime.now(UTC)
        await connection.execute(update(keys).where(keys.c.id == found.id).values(revoked=revoked))
    return replace(found, revoked=revoked)


async def rotate_key(database: Database, key: str, *, overlap: timedelta) -> tuple[Key, str]:
    """Creates a key with the old one's tenant, scopes and name; the old one stays valid for another `overlap`.

    Args:
        key: The old key's name, id or prefix of its id.

    Raises UserError when there is no such key, there are several, or it is revoked or has expired.
    """
    now, new = datetime.now(UTC), new_key()
    async with database.write() as connection:
        old = await _find(connection, key)
        if not old.valid(now):
            raise UserError(f"key {key!r} is revoked or has expired; create a new one with `bonbon keys create`")
        record = replace(old, id=time_ordered_id(), digest=digest_of(new), created=now, expires=None)
        ends = now + overlap if old.expires is None else min(old.expires, now + overlap)
        await connection.execute(insert(keys), [_row(record)])
        await connection.execute(update(keys).where(keys.c.id == old.id).values(expires=ends))
    return record, new


async def _find(connection: Transaction, text: str) -> Key:
    """Returns the key with this id, else the one with this name, else the one whose id has this prefix.

    A prefix has at least `SHORTEST` characters, because a revocation cannot be undone. Among several keys with one
    name, revoked and expired ones are skipped.
    """
    # Locked, so that the second of two concurrent rotations sees the result of the first.
    begins = keys.c.id.startswith(text, autoescape=True) if len(text) >= SHORTEST else false()
    query = select(keys).where(or_(keys.c.name == text, begins)).order_by(keys.c.id).with_for_update()
    found = [_key(dict(row)) for row in (await connection.execute(query)).mappings()]
    exact = [key for key in found if key.id == text]
    named = [key for key in found if key.name == text]
    now = datetime.now(UTC)
    matches = exact or [key for key in named if key.valid(now)] or named or found
    if not matches:
        raise UserError(f"there is no key {text!r}; `bonbon keys list` shows them", param="id")
    if len(matches) > 1:
        listed = ", ".join(f"{key.id} ({key.name}, made {key.created:%Y-%m-%d %H:%M})" for key in matches)
        raise UserError(f"{text!r} matches {len(matches)} keys: {listed}; give the id of one", param="id")
    return matches[0]


def _row(key: Key) -> dict[str, Any]:
    return asdict(key) | {"scopes": sorted(key.scopes)}


def _key(row: dict[str, Any]) -> Key:
    return Key(**row | {"scopes": frozenset(Scope(scope) for scope in row["scopes"])})
