"""Asking the database for callers who cannot wait for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from bonbon.concurrency.deadlines import within

T = TypeVar("T")


class OneAtATime(Generic[T]):
    """Puts one question at a time to what may not answer: many callers make no more work for it than one.

    Args:
        ask: puts the question.
        seconds: that a caller waits. The question goes on after that, and answers who comes next.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._asking: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """The answer to the question that is under way, or to a new one. Raises TimeoutError when it takes too long."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        return await within(self._seconds, self._asking)
