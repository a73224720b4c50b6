"""Keys in the database."""

from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update

from bonbon.database import Database
from bonbon.errors import UserError
from bonbon.ids import time_ordered_id
from bonbon.keys.records import Key, Scope, digest_of, new_key
from bonbon.tables import keys
from bonbon.transaction import Transaction


async def create_key(
    database: Database,
    name: str,
    *,
    tenant: str = "",
    scopes: Collection[Scope] = (Scope.COMPLETE, Scope.FEEDBACK),
    expires: datetime | None = None,
) -> tuple[Key, str]:
    """A new key's record, and the key, which can never be read again. Raises UserError when it would open nothing."""
    if not scopes:
        raise UserError("a key without a scope opens nothing; give one", param="scopes")
    key = new_key()
    record = Key(time_ordered_id(), name, tenant, frozenset(scopes), digest_of(key), datetime.now(UTC), expires)
    async with database.write() as connection:
        await connection.execute(insert(keys), [_row(record)])
    return record, key


async def all_keys(database: Database) -> list[Key]:
    """Every record, oldest first, those that open nothing any more too."""
    async with database.read() as connection:
        rows = (await connection.execute(select(keys).order_by(keys.c.id))).mappings().all()
    return [_key(dict(row)) for row in rows]


async def revoke_key(database: Database, key_id: str) -> Key:
    """From now on it opens nothing. Raises UserError when there is no such key."""
    async with database.write() as connection:
        found = await _get(connection, key_id)
        revoked = found.revoked or datetime.now(UTC)
        await connection.execute(update(keys).where(keys.c.id == key_id).values(revoked=revoked))
    return replace(found, revoked=revoked)


async def rotate_key(database: Database, key_id: str, *, overlap: timedelta) -> tuple[Key, str]:
    """A new key with the old one's tenant, scopes and name; the old one opens for another `overlap`.

    Raises UserError when there is no such key, or it opens nothing any more.
    """
    now, key = datetime.now(UTC), new_key()
    async with database.write() as connection:
        old = await _get(connection, key_id)
        if not old.valid(now):
            raise UserError(f"key {key_id!r} is revoked or has expired; make a new one with `bonbon keys create`")
        record = replace(old, id=time_ordered_id(), digest=digest_of(key), created=now, expires=None)
        ends = now + overlap if old.expires is None else min(old.expires, now + overlap)
        await connection.execute(insert(keys), [_row(record)])
        await connection.execute(update(keys).where(keys.c.id == key_id).values(expires=ends))
    return record, key


async def _get(connection: Transaction, key_id: str) -> Key:
    # Locked, so that of two rotations at once the second sees what the first has done.
    query = select(keys).where(keys.c.id == key_id).with_for_update()
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise UserError(f"there is no key {key_id!r}; `bonbon keys list` shows them", param="id")
    return _key(dict(row))


def _row(key: Key) -> dict[str, Any]:
    return asdict(key) | {"scopes": sorted(key.scopes)}


def _key(row: dict[str, Any]) -> Key:
    return Key(**row | {"scopes": frozenset(Scope(scope) for scope in row["scopes"])})
