"""Shares one call among concurrent callers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from bonbon.concurrency.deadlines import within

T = TypeVar("T")


class OneAtATime(Generic[T]):
    """Runs at most one call at a time of a function that may be slow; concurrent callers share its result.

    Args:
        call: The function to call.
        seconds: Seconds that a caller waits. The call continues after that, and later callers get its result.
    """

    def __init__(self, call: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Returns the result of the running call, or of a new one.

        Raises:
            TimeoutError: The call takes too long.
        """
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._call())
        return await within(self._seconds, self._running)
