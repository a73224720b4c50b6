"""Requests are passed on whole, and no body larger than the limit is ever held, whether or not it says its length."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_of


class BodyLimit:
    """ASGI middleware: reads a request's body before anything looks at it; one above `most` bytes is a 413.

    A declared length is refused before anything is read, and so is a compressed body, with a 415. A chunked body is
    counted as it comes. FastAPI would read the body, too, but it keeps what it has read of a client that disconnects
    until the next full garbage collection.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            encoded = HTTPException(
                415,
                f"the request body is encoded as {encoding[:64]!r}, which is not supported: send it without a "
                "content-encoding",
                {"accept-encoding": "identity"},
            )
            await problem_of(encoded).response()(scope, receive, send)
            return
        declared = headers.get("content-length", "")
        body = None
        if not declared.isdecimal() or int(declared[:18]) <= self.most:
            body = await self._read(receive)
        if body is None:
            too_large = HTTPException(413, f"the request body is larger than {self.most} bytes")
            await problem_of(too_large).response()(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def pass_on() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message or await receive()

        await self.app(scope, pass_on, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None when it is too large. Raises ClientDisconnect."""
        read = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            read += message.get("body", b"")
            if len(read) > self.most:
                return None
            more = message.get("more_body", False)
        return bytes(read)
