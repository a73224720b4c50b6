"""Gives each request an id, which appears in the response's headers, in log lines and in logged groups."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

HEADER = "x-request-id"
ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """ASGI middleware that uses the client's x-request-id if it is a plain word, and otherwise generates one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if ACCEPTED.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = name

        async def name_response(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        with bound_contextvars(request_id=name):
            await self.app(scope, receive, name_response)


def request_id(connection: HTTPConnection) -> str:
    """Returns the id of the request that arrived on `connection`."""
    return name_of(connection.scope)


def name_of(scope: Scope) -> str:
    """Returns the id of the request with this ASGI scope; for middleware inside `RequestId`."""
    name: str = scope["state"]["request_id"]
    return name
