"""Server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.disconnect import CutOff, unless_disconnected
from service.errors import problem_of, report

DONE = b"data: [DONE]\n\n"


def data(value: dict[str, Any]) -> bytes:
    """One event. ASCII only, because some clients take Unicode's line separators for ends of lines."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip; it keeps proxies from closing a quiet connection."""
    return f": {text}\n\n".encode()


class EventStream(StreamingResponse):
    """Sends events as they come.

    A failure becomes an error event, which ends the stream. A client that disconnects closes `events`, as does
    `cut_off` when it is set.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes], cut_off: asyncio.Event) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.first, self.events, self.cut_off = first, events, cut_off

    @classmethod
    async def open(cls, events: AsyncGenerator[bytes], receive: Receive, cut_off: asyncio.Event) -> "EventStream":
        """A stream whose first event is there: what fails before that raises, and can be an ordinary status.

        Raises ClientDisconnect and CutOff, too.
        """

        async def first() -> bytes:
            return await anext(events)

        try:
            return cls(await unless_disconnected(receive, first(), cut_off), events, cut_off)
        except BaseException:
            await events.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Out here, because a task that is cancelled before its first step closes nothing.
        async with aclosing(self.events):
            try:
                await unless_disconnected(receive, self._send(send), self.cut_off)
            except ClientDisconnect:
                pass  # nobody is there to be told
            except CutOff as error:
                await _send_bytes(send, data(problem_of(error).envelope))
                await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._send_events(send)
        except Exception as error:  # noqa: BLE001 - the status has been sent: an error event is all that is left
            problem = problem_of(error)
            report(error, problem)
            await _send_bytes(send, data(problem.envelope))
        await send({"type": "http.response.body", "body": b""})

    async def _send_events(self, send: Send) -> None:
        await _send_bytes(send, self.first)
        async for event in self.events:
            await _send_bytes(send, event)


async def _send_bytes(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
