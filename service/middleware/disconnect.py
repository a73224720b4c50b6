"""Cancels the work for a request whose client disconnects or whose time is over because the service stops."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bonbon.concurrency.shielded import end
from bonbon.errors import EngineError

T = TypeVar("T")


class CutOff(EngineError):
    """Raised when the service stops and no longer waits for an answer."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T], cut_off: asyncio.Event) -> T:
    """Returns the result of `work`, which is cancelled if the client disconnects or the event is set first.

    The request's body must have been read. When this function returns or raises, `work` has ended.

    Raises:
        ClientDisconnect: The client disconnected.
        CutOff: The event was set.
    """
    task = asyncio.create_task(work)
    listener = asyncio.create_task(_disconnected(receive))
    stopper = asyncio.create_task(cut_off.wait())
    try:
        await asyncio.wait((task, listener, stopper), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise (
            CutOff("the service is stopping and cut the answer off; try again") if stopper.done() else ClientDisconnect
        )
    finally:
        await end(task, listener, stopper)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
