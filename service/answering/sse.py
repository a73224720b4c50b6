"""Server-sent events."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bonbon.concurrency.shielded import end
from service.errors import Problem, problem_of, report
from service.http_server.send_buffer import SendBuffer
from service.middleware.disconnect import CutOff, unless_disconnected

DONE = b"data: [DONE]\n\n"

Failure = Callable[[Problem], bytes]
"""What a stream ends with when it fails."""
Write = Callable[[Callable[[bytes], None]], Awaitable[None]]
"""Produces a stream: hands each piece to the function it is given."""


def data(value: dict[str, Any]) -> bytes:
    """One event. ASCII only, because some clients take Unicode's line separators for ends of lines."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def named(value: dict[str, Any]) -> bytes:
    """One event under the name that its `type` says, as the Responses API has them."""
    return f"event: {value['type']}\n".encode() + data(value)


def comment(text: str) -> bytes:
    """A line that clients skip; it keeps proxies from closing a quiet connection."""
    return f": {text}\n\n".encode()


class EventStream(StreamingResponse):
    """Sends events as they come.

    One task writes the stream and another sends it, with a buffer between them, so writing never waits for the client.
    What `failure` makes of a failure ends the stream. A client that disconnects ends the writing, and so does
    `cut_off` when it is set.
    """

    media_type = "text/event-stream"

    def __init__(self, write: Write, failure: Failure, buffer: SendBuffer, cut_off: asyncio.Event) -> None:
        super().__init__((), headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.failure, self.buffer, self.cut_off = failure, buffer, cut_off
        self._writing = asyncio.create_task(_fill(write, buffer))

    @classmethod
    async def open(
        cls, write: Write, failure: Failure, buffer: SendBuffer, receive: Receive, cut_off: asyncio.Event
    ) -> "EventStream":
        """A stream whose first event is there: what fails before that raises, and can be an ordinary status.

        Raises ClientDisconnect and CutOff, too.
        """
        stream = cls(write, failure, buffer, cut_off)
        try:
            if not await unless_disconnected(receive, buffer.ready(), cut_off):
                await stream._writing  # which failed, and raises why
        except BaseException:
            await stream._close()
            raise
        return stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send(send), self.cut_off)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except CutOff as error:
            await self._close()
            await self._send_failure(send, problem_of(error))
        finally:
            await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            while piece := await self.buffer.take():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._writing
        except Exception as error:  # noqa: BLE001 - the status has been sent: an error event is all that is left
            problem = problem_of(error)
            report(error, problem)
            await self._send_failure(send, problem)
            error.__traceback__ = None  # its frames hold the task that holds the error
        else:
            await send({"type": "http.response.body", "body": b""})

    async def _send_failure(self, send: Send, problem: Problem) -> None:
        await send({"type": "http.response.body", "body": self.failure(problem), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _close(self) -> None:
        self.buffer.close()
        await end(self._writing)


async def _fill(write: Write, buffer: SendBuffer) -> None:
    try:
        await write(buffer.put)
    finally:
        buffer.end()
