"""Writes and sends server-sent events."""

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
"""Returns the bytes that end a stream after a failure."""
Write = Callable[[Callable[[bytes], None]], Awaitable[None]]
"""Produces a stream: passes each piece to the given function."""


def data(value: dict[str, Any]) -> bytes:
    """Returns one event. It is ASCII, because some clients treat Unicode's line separators as line ends."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def named(value: dict[str, Any]) -> bytes:
    """Returns one event, named by its `type` as in the Responses API."""
    return f"event: {value['type']}\n".encode() + data(value)


def comment(text: str) -> bytes:
    """Returns a line that clients ignore; it keeps proxies from closing an idle connection."""
    return f": {text}\n\n".encode()


class EventStream(StreamingResponse):
    """A response that sends events as they are produced.

    One task writes the stream and another sends it, with a buffer between them, so that writing never waits for the
    client. After a failure the stream ends with the bytes that `failure` returns. Writing ends when the client
    disconnects or `cut_off` is set.
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
        """Returns a stream whose first event is available. An earlier failure raises, so it can become an ordinary
        status.

        Raises:
            ClientDisconnect: The client disconnected.
            CutOff: `cut_off` was set.
        """
        stream = cls(write, failure, buffer, cut_off)
        try:
            if not await unless_disconnected(receive, buffer.ready(), cut_off):
                await stream._writing  # raises the error that ended it
        except BaseException:
            await stream._close()
            raise
        return stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send(send), self.cut_off)
        except ClientDisconnect:
            pass  # no client is left to notify
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
        except Exception as error:  # noqa: BLE001 - the status has been sent, so only an error event can report it
            problem = problem_of(error)
            report(error, problem)
            await self._send_failure(send, problem)
            error.__traceback__ = (
                None  # breaks a reference cycle: its frames refer to the task, which refers to the error
            )
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
