"""Connections above the limit, which keep a service manageable that is full."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import BUSY, Problem

SERVED = ("/health/", "/metrics", "/admin/", "/console")


class SpareConnections:
    """ASGI middleware: on a spare connection only health checks and the operator's requests are answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["state"].get("spare") and not scope["path"].startswith(SERVED):
            message = "the service has as many connections as it takes; try again later"
            await Problem(503, message, code="overloaded", headers=BUSY).response()(scope, receive, send)
            return
        await self.app(scope, receive, send)
