"""A client that hangs up takes its work with it, and so does a service that must stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bonbon.concurrency.shielded import end
from bonbon.errors import EngineError

T = TypeVar("T")


class CutOff(EngineError):
    """The service stops, and does not wait for the answer any longer."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T], cut_off: asyncio.Event) -> T:
    """The result of `work`, which is cancelled when the client disconnects or the event is set before.

    The request's body must have been read. Whichever way this ends, `work` has ended.

    Raises ClientDisconnect, and CutOff.
    """
    task = asyncio.create_task(work)
    listener = asyncio.create_task(_disconnected(receive))
    stopper = asyncio.create_task(cut_off.wait())
    try:
        await asyncio.wait((task, listener, stopper), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise (
            CutOff("the service has to stop and cut the answer off; try again") if stopper.done() else ClientDisconnect
        )
    finally:
        await end(task, listener, stopper)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
