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
        keep: How long a result is returned again, as a multiple of the time that the call took.
    """

    def __init__(self, call: Callable[[], Awaitable[T]], seconds: float, *, keep: float = 0.0) -> None:
        self._call, self._seconds, self._keep = call, seconds, keep
        self._running: asyncio.Future[T] | None = None
        self._kept_until = 0.0

    async def __call__(self) -> T:
        """Returns the result of the running call, of the last one while it is kept, or of a new one.

        Raises:
            TimeoutError: The call takes too long.
        """
        if self._running is None or (self._running.done() and asyncio.get_running_loop().time() >= self._kept_until):
            self._running = asyncio.ensure_future(self._timed())
        return await within(self._seconds, self._running)

    async def _timed(self) -> T:
        now = asyncio.get_running_loop().time
        start = now()
        result = await self._call()
        self._kept_until = now() + self._keep * (now() - start)
        return result
