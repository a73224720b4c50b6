"""A transaction whose steps have deadlines."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import Executable

from bonbon.concurrency.deadlines import give_up, within
from bonbon.errors import StoreUnavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)

GRACE = 1.0
"""Seconds beyond a deadline in which a database that is alive ends a statement by itself, and then to give it up."""


class Transaction:
    """What may be done inside `Database.read` and `Database.write`.

    A caller that is cancelled, or whose time is over, leaves at once. What it has begun goes on without it for as long
    as its time lasts, and is then given up together with its connection: see `end`.
    """

    def __init__(self, connection: AsyncConnection, seconds: float) -> None:
        self.connection, self.seconds = connection, seconds
        self._begun: asyncio.Future[Any] | None = None
        self._until = 0.0

    async def execute(
        self, statement: Executable, parameters: list[dict[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run one statement, once for each of `parameters`; the result is buffered."""
        return await self.call(self.connection.execute(statement, parameters))

    async def run_sync(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on the synchronous connection."""
        return await self.call(self.connection.run_sync(function))

    async def call(self, work: Awaitable[T]) -> T:
        """What `work`, a step on the connection, gives. Raises StoreUnavailable when that takes too long."""
        seconds = self.seconds + GRACE
        self._until = asyncio.get_running_loop().time() + seconds
        self._begun = begun = asyncio.ensure_future(work)
        try:
            return await within(seconds, begun)
        except TimeoutError as error:
            raise late(self.seconds) from error

    @property
    def under_way(self) -> bool:
        """Whether a step goes on that its caller has left."""
        return self._begun is not None and not self._begun.done()

    async def end(self) -> None:
        """Give the connection back to its pool, without what was not committed. Raises nothing of the database's.

        A step that its caller left is waited for, as long as it may take: SQLite's driver goes on with it in a thread,
        and would leave a lock on a connection that nobody has. A connection that does not answer is closed.
        """
        begun = self._begun
        if begun is not None and not begun.done():
            await asyncio.wait({begun}, timeout=max(0.0, self._until - asyncio.get_running_loop().time()))
            await give_up(begun, GRACE)
        if self.connection.sync_connection is None:
            return
        closing = asyncio.ensure_future(self.connection.close())
        try:
            await within(GRACE, closing)
        except TimeoutError:
            await give_up(closing, GRACE)
        except Exception as error:  # noqa: BLE001 - nobody waits for it any more
            log.debug("a connection was closed rather than kept", error=type(error).__name__)


def late(seconds: float) -> StoreUnavailable:
    """The error for a call that has had its time."""
    return StoreUnavailable(f"the database gave no answer within {seconds:g} s", why="it gave no answer in time")
