"""Reads request bodies completely, up to a limit, whether or not a request declares its length."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_of


class BodyLimit:
    """ASGI middleware that reads the body before the application runs, and answers a 413 if it exceeds
    `max_body_bytes`.

    A larger declared length is refused before anything is read, and so is a compressed body, with a 415. A chunked body
    is counted as it arrives. FastAPI could read the body, too, but it would keep what a client sent before it
    disconnected until the next full garbage collection.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            encoded = HTTPException(
                415,
                f"the request body is encoded as {encoding[:64]!r}, which is not supported: send it without the "
                "header content-encoding",
                {"accept-encoding": "identity"},
            )
            await problem_of(encoded).response()(scope, receive, send)
            return
        declared = headers.get("content-length", "")
        body = None
        if not declared.isdecimal() or int(declared[:18]) <= self.max_body_bytes:
            body = await self._read(receive)
        if body is None:
            too_large = HTTPException(413, f"the request body is larger than {self.max_body_bytes} bytes")
            await problem_of(too_large).response()(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def pass_on() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message or await receive()

        await self.app(scope, pass_on, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Returns the body, or None if it is too large.

        Raises:
            ClientDisconnect: The client disconnects.
        """
        read = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            read += message.get("body", b"")
            if len(read) > self.max_body_bytes:
                return None
            more = message.get("more_body", False)
        return bytes(read)
