"""Awaits work that must complete even when its caller is cancelled."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded(work: Awaitable[T]) -> T:
    """Awaits `work` until it ends even when the caller is cancelled meanwhile; then raises that CancelledError."""
    task = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        task.exception()  # Marks the exception as retrieved, because the cancelled caller does not get it.
        try:
            raise interruption
        finally:
            interruption = None  # The error's traceback refers to this frame: without this, a cycle.
    return task.result()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels `tasks` and returns when they have ended, even when the caller is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    await shielded(asyncio.gather(*tasks, return_exceptions=True))
