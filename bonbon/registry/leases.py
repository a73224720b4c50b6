"""Leases with one holder at a time, and a fencing token that makes a late holder's writes fail."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update

from bonbon.errors import Conflict
from bonbon.store.database import Database
from bonbon.store.tables import leases


@dataclass(frozen=True, slots=True)
class Lease:
    """A held lease. Each acquisition gets a greater `token` than the one before.

    Times come from the holders' own clocks, which may differ and may be set. A process that takes a lease over
    therefore watches it first (see `acquire`), and the token makes a late holder's `renew` and `release` fail.
    """

    name: str
    holder: str
    token: int
    seconds: float


class LeaseHeld(Conflict):
    """Raised when another process holds the lease.

    Args:
        lease: The name of the lease.
        holder: The process that holds it.
        expires: When it ends, unless it is renewed.
    """

    def __init__(self, lease: str, holder: str, expires: datetime) -> None:
        super().__init__(
            f"lease {lease!r} is held by {holder} until {expires.isoformat(timespec='seconds')}, unless that renews it"
        )
        self.holder, self.expires = holder, expires


async def acquire(
    database: Database,
    name: str,
    holder: str,
    seconds: float,
    *,
    watch: bool = False,
    watching: Callable[[str, float], None] = lambda _holder, _seconds: None,
) -> Lease:
    """Takes the lease if it is free or its holder is late in renewing it. Raises LeaseHeld.

    Args:
        watch: When the clock says that the holder is late, or holds the lease for longer than is possible, first wait
            for half the lease's length to see whether it is renewed: perhaps only a clock was set.
        watching: Called before that wait with the holder and the seconds that the wait takes.
    """
    doubted = await _doubted(database, name, watching) if watch else None
    now = datetime.now(UTC)
    async with database.write() as connection:
        await connection.execute(database.insert_new(leases).values(name=name, holder="", token=0, expires=now))
        row = (await connection.execute(select(leases).where(leases.c.name == name).with_for_update())).one()
        held = (row.token, row.expires) != doubted if watch else row.expires > now
        if row.holder and held:
            raise LeaseHeld(name, row.holder, row.expires)
        lease = Lease(name, holder, row.token + 1, seconds)
        values = {"holder": holder, "token": lease.token, **_until(lease)}
        await connection.execute(update(leases).where(leases.c.name == name).values(values))
    return lease


async def _doubted(
    database: Database, name: str, watching: Callable[[str, float], None]
) -> tuple[int, datetime] | None:
    """Returns token and end of a lease that the clock casts doubt on, if it is unchanged after half its length."""

    async def look() -> tuple[int, datetime, float | None, str] | None:
        query = select(leases.c.token, leases.c.expires, leases.c.seconds, leases.c.holder).where(leases.c.name == name)
        async with database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.token, row.expires, row.seconds, row.holder)

    found = await look()
    if found is None:
        return None
    token, expires, seconds, holder = found
    left = expires - datetime.now(UTC)
    if left > timedelta(0) and (seconds is None or left <= timedelta(seconds=seconds)):
        return None
    if holder and seconds:
        watching(holder, seconds / 2)
    await asyncio.sleep((seconds or 0.0) / 2)
    return (token, expires) if await look() == found else None


def _until(lease: Lease) -> dict[str, object]:
    return {"expires": datetime.now(UTC) + timedelta(seconds=lease.seconds), "seconds": lease.seconds}


async def renew(database: Database, lease: Lease) -> Lease:
    """Extends the lease by `lease.seconds`. Raises Conflict when another process has taken it."""
    await _change(database, lease, holder=lease.holder, **_until(lease))
    return lease


async def release(database: Database, lease: Lease) -> None:
    """Releases the lease. Raises Conflict when another process has taken it."""
    await _change(database, lease, holder="", expires=datetime.now(UTC))


async def _change(database: Database, lease: Lease, **values: object) -> None:
    held = (leases.c.name == lease.name, leases.c.token == lease.token, leases.c.holder == lease.holder)
    async with database.write() as connection:
        result = await connection.execute(update(leases).where(*held).values(**values))
        if result.rowcount != 1:
            raise Conflict(f"lease {lease.name!r} with token {lease.token} was taken over")
