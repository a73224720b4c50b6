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
"""Seconds beyond a deadline in which a live database ends a statement itself and a hanging connection is then
closed."""


class Transaction:
    """The operations inside `Database.read` and `Database.write`.

    A caller that is cancelled or out of time leaves at once. Its unfinished step continues without it until the
    deadline and is then abandoned together with its connection; see `end`.
    """

    def __init__(self, connection: AsyncConnection, seconds: float) -> None:
        self.connection, self.seconds = connection, seconds
        self._begun: asyncio.Future[Any] | None = None
        self._until = 0.0

    async def execute(
        self, statement: Executable, parameters: list[dict[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Runs one statement, once for each of `parameters`, and returns the buffered result."""
        return await self.call(self.connection.execute(statement, parameters))

    async def run_sync(self, function: Callable[[Connection], T]) -> T:
        """Runs `function` on the synchronous connection."""
        return await self.call(self.connection.run_sync(function))

    async def call(self, work: Awaitable[T]) -> T:
        """Returns the result of `work`, a step on the connection. Raises StoreUnavailable when the step takes too
        long."""
        seconds = self.seconds + GRACE
        self._until = asyncio.get_running_loop().time() + seconds
        self._begun = begun = asyncio.ensure_future(work)
        try:
            return await within(seconds, begun)
        except TimeoutError as error:
            raise late(self.seconds) from error

    @property
    def under_way(self) -> bool:
        """Whether a step is still running after its caller has left."""
        return self._begun is not None and not self._begun.done()

    async def end(self) -> None:
        """Rolls back what was not committed and returns the connection to its pool. Raises no database errors.

        Waits for a step that its caller left, up to the deadline: SQLite's driver continues it in a thread and would
        leave a lock on an unused connection. A connection that does not answer is closed.
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
    """Returns the error for a call that exceeded its deadline."""
    return StoreUnavailable(f"the database did not answer within {seconds:g} s", why="it did not answer in time")
