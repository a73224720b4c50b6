"""Holds a lease for as long as a block of work takes."""

import asyncio
import math
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bonbon.concurrency.shielded import end
from bonbon.errors import Conflict, StoreError
from bonbon.registry.leases import Lease, LeaseHeld, acquire, release, renew
from bonbon.store.database import Database

log = structlog.get_logger(__name__)


class HeldLease:
    """Holds the lease `name` inside `async with` and renews it in the background, three times per lease length.

    Entering raises LeaseHeld when another process holds the lease. When the current holder looks late, entering waits
    for as long as `acquire` watches the lease, because a live holder renews it in that time. The log says so before.

    Args:
        database: The database that has the lease.
        name: The name of the lease.
        seconds: The length of the lease.
        patient: If the holder was a process of this machine that has ended, wait until the lease ends. The log says
            before for whom it waits, and how long at most.
    """

    def __init__(self, database: Database, name: str, seconds: float, *, patient: bool = False) -> None:
        self._database, self._name, self._seconds, self._patient = database, name, seconds, patient
        self._lost: Conflict | None = None

    async def __aenter__(self) -> Self:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        self._lease: Lease = await self._acquire(holder)
        self._until = monotonic() + self._seconds
        self._renewing = asyncio.create_task(self._keep())
        return self

    async def _acquire(self, holder: str) -> Lease:
        try:
            return await acquire(
                self._database, self._name, holder, self._seconds, watch=True, watching=self._tell_watching
            )
        except LeaseHeld as held:
            if not self._patient or not _has_ended(held.holder):
                raise
            left = max(0.0, (held.expires - datetime.now(UTC)).total_seconds())
            log.warning(
                "waiting for the lease of a process that has ended without giving it back",
                lease=self._name,
                holder=held.holder,
                seconds_at_most=math.ceil(left),
            )
        await asyncio.sleep(left)
        # Nothing is left to watch: the holder has ended, and whoever was faster holds it for longer than now.
        return await acquire(self._database, self._name, holder, self._seconds)

    def _tell_watching(self, holder: str, seconds: float) -> None:
        log.warning(
            "waiting to see whether the lease's holder, which is late in renewing it, still works",
            lease=self._name,
            holder=holder,
            seconds_at_most=math.ceil(seconds),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await end(self._renewing)
        if self._lost is None:
            try:
                await release(self._database, self._lease)
            except Conflict as conflict:
                log.warning("the lease was lost before it was given back", reason=str(conflict))
            except StoreError as failure:
                # The protected work has finished or has failed with its own error, which is what the caller must see.
                log.warning("the lease could not be given back; it runs out by itself", reason=str(failure))

    async def confirm(self) -> None:
        """Renews the lease now. Raises Conflict when it is lost; the protected data must not be touched any more
        then."""
        if self._lost is not None:
            raise self._lost
        await self._renew()

    async def _keep(self) -> None:
        while self._lost is None:
            await asyncio.sleep(self._seconds / 3)
            try:
                await self._renew()
            except Conflict as conflict:
                log.warning("lease lost", lease=self._name, reason=str(conflict))
            except (StoreError, SQLAlchemyError, OSError) as error:
                log.warning("lease not renewed, trying again", lease=self._name, reason=str(error))

    async def _renew(self) -> None:
        start = monotonic()
        try:
            if start > self._until:
                raise Conflict(f"lease {self._name!r} ran out before it was renewed")
            self._lease = await renew(self._database, self._lease)
        except Conflict as conflict:
            self._lost = conflict
            raise
        self._until = start + self._seconds


def _has_ended(holder: str) -> bool:
    """Returns whether a holder was a process of this machine that has ended."""
    host, _, number = holder.rpartition(":")
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(int(number))


def _is_zombie(number: int) -> bool:
    """Returns whether a process has ended, but its parent has not noticed yet: in a container, it may never do so."""
    try:
        _, _, state = Path(f"/proc/{number}/stat").read_text().rpartition(") ")
    except OSError:  # It ended just now, or there is no such file outside Linux.
        return False
    return state.startswith("Z")
