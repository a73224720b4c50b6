"""Leases: one holder at a time, and a fencing token that tells a late holder that it is late."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import insert, select, update

from bonbon.database import Database
from bonbon.errors import Conflict
from bonbon.tables import leases


@dataclass(frozen=True, slots=True)
class Lease:
    """A held lease. Each acquisition gets a greater `token` than the one before.

    Times are the holders' own clocks: clocks that differ by more than the lease's length can let two holders overlap;
    the token makes the late one's `renew` and `release` fail.
    """

    name: str
    holder: str
    token: int
    seconds: float


async def acquire(database: Database, name: str, holder: str, seconds: float) -> Lease:
    """Take the lease if nobody holds it or its holder is late in renewing it. Raises Conflict naming the holder."""
    now = datetime.now(UTC)
    expires = now + timedelta(seconds=seconds)
    async with database.write() as connection:
        row = (await connection.execute(select(leases).where(leases.c.name == name).with_for_update())).one_or_none()
        if row is None:
            await connection.execute(insert(leases).values(name=name, holder=holder, token=1, expires=expires))
            return Lease(name, holder, 1, seconds)
        if row.expires > now and row.holder:
            raise Conflict(f"lease {name!r} is held by {row.holder} until {row.expires.isoformat(timespec='seconds')}")
        token = row.token + 1
        change = update(leases).where(leases.c.name == name, leases.c.token == row.token)
        await connection.execute(change.values(holder=holder, token=token, expires=expires))
    return Lease(name, holder, token, seconds)


async def renew(database: Database, lease: Lease) -> Lease:
    """Hold it for another `lease.seconds`. Raises Conflict when somebody else has taken it."""
    expires = datetime.now(UTC) + timedelta(seconds=lease.seconds)
    await _change(database, lease, lease.holder, expires)
    return replace(lease)


async def release(database: Database, lease: Lease) -> None:
    """Give it back. Raises Conflict when somebody else has taken it."""
    await _change(database, lease, "", datetime.now(UTC))


async def _change(database: Database, lease: Lease, holder: str, expires: datetime) -> None:
    held = (leases.c.name == lease.name, leases.c.token == lease.token, leases.c.holder == lease.holder)
    async with database.write() as connection:
        result = await connection.execute(update(leases).where(*held).values(holder=holder, expires=expires))
        if result.rowcount != 1:
            raise Conflict(f"lease {lease.name!r} with token {lease.token} was taken over")
