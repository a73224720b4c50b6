"""No request body larger than the limit is ever held, whether or not it says its length."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_of


class BodyLimit:
    """ASGI middleware: a body above `most` bytes is a 413.

    A declared length is refused before anything is read. A chunked body is counted as it comes, and the reader is
    interrupted by the chunk that is too much.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = HTTPException(413, f"the request body is larger than {self.most} bytes")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:18]) > self.most:
            await problem_of(too_large).response()(scope, receive, send)
            return
        read = 0

        async def count() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise too_large
            return message

        await self.app(scope, count, send)
