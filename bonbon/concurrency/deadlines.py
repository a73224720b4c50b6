"""Waiting for what may never come."""

import asyncio
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that one call to the database may take: to connect, to run a statement, to commit.

    `call` is for what a request, a lease or the registry waits for, `bulk` for what reads or deletes many groups.
    """

    call: float = 10.0
    bulk: float = 600.0


async def within(seconds: float, begun: "asyncio.Future[T]") -> T:
    """The result of what has begun. It goes on when this is cancelled, or late; its error is nobody's then.

    Raises TimeoutError when it has not ended within so many seconds.
    """
    begun.add_done_callback(_seen)
    await asyncio.wait({begun}, timeout=seconds)
    if not begun.done():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return begun.result()


async def give_up(begun: "asyncio.Future[T]", seconds: float) -> None:
    """Cancel it, again when it goes on all the same, and wait at most so many seconds each time."""
    begun.add_done_callback(_seen)
    for _ in range(2):
        if not begun.done():
            begun.cancel()
            await asyncio.wait({begun}, timeout=seconds)


def _seen(ended: "asyncio.Future[T]") -> None:
    if not ended.cancelled():
        ended.exception()
