"""Accepts requests that differ from a route only in form."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXACT = ("/console", "/docs", "/redoc")
"""Pages whose relative links depend on the trailing slash."""


class ForgivingPaths:
    """ASGI middleware that ignores a trailing slash and answers HEAD like GET without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path.endswith("/") and not path.startswith(EXACT):
            scope = {**scope, "path": path.rstrip("/") or "/"}
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_head)
