"""Waits with deadlines for futures that may never complete."""

import asyncio
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The seconds that one call to the database may take: to connect, to run a statement, to commit.

    `call` applies where a request, a lease or the registry waits, and `bulk` to reading or deleting many groups.
    """

    call: float = 10.0
    bulk: float = 600.0


async def within(seconds: float, future: "asyncio.Future[T]") -> T:
    """Returns the result of `future`.

    The future keeps running after a timeout or a cancellation; its error is then ignored.

    Raises TimeoutError when it has not completed within so many seconds.
    """
    future.add_done_callback(_retrieve_exception)
    await asyncio.wait({future}, timeout=seconds)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


async def give_up(future: "asyncio.Future[T]", seconds: float) -> None:
    """Cancels `future`, a second time if it keeps running, and waits at most so many seconds each time."""
    future.add_done_callback(_retrieve_exception)
    for _ in range(2):
        if not future.done():
            future.cancel()
            await asyncio.wait({future}, timeout=seconds)


def _retrieve_exception(future: "asyncio.Future[T]") -> None:
    if not future.cancelled():
        future.exception()
