"""Leases: one holder at a time, and a fencing token that tells a late holder that it is late."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update

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
    async with database.write() as connection:
        await connection.execute(database.insert_new(leases).values(name=name, holder="", token=0, expires=now))
        row = (await connection.execute(select(leases).where(leases.c.name == name).with_for_update())).one()
        if row.expires > now and row.holder:
            raise Conflict(f"lease {name!r} is held by {row.holder} until {row.expires.isoformat(timespec='seconds')}")
        lease = Lease(name, holder, row.token + 1, seconds)
        values = {"holder": holder, "token": lease.token, "expires": now + timedelta(seconds=seconds)}
        await connection.execute(update(leases).where(leases.c.name == name).values(values))
    return lease


async def renew(database: Database, lease: Lease) -> Lease:
    """Hold it for another `lease.seconds`. Raises Conflict when somebody else has taken it."""
    expires = datetime.now(UTC) + timedelta(seconds=lease.seconds)
    await _change(database, lease, lease.holder, expires)
    return lease


async def release(database: Database, lease: Lease) -> None:
    """Give it back. Raises Conflict when somebody else has taken it."""
    await _change(database, lease, "", datetime.now(UTC))


async def _change(database: Database, lease: Lease, holder: str, expires: datetime) -> None:
    held = (leases.c.name == lease.name, leases.c.token == lease.token, leases.c.holder == lease.holder)
    async with database.write() as connection:
        result = await connection.execute(update(leases).where(*held).values(holder=holder, expires=expires))
        if result.rowcount != 1:
            raise Conflict(f"lease {lease.name!r} with token {lease.token} was taken over")
