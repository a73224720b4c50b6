"""Work that a cancelled caller must not leave half done."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded(work: Awaitable[T]) -> T:
    """Await `work` to its end even when the caller is cancelled meanwhile; then raise that CancelledError."""
    task = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        task.exception()  # seen: the caller has ended, and nobody else is told
        try:
            raise interruption
        finally:
            interruption = None  # this frame is in its traceback: a cycle
    return task.result()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return when they have ended, even when the caller is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    await shielded(asyncio.gather(*tasks, return_exceptions=True))
