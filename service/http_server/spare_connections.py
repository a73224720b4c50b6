"""Restricts connections beyond the limit, which keep a fully loaded service manageable."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import BUSY, Problem

SERVED = ("/health/", "/metrics", "/admin/", "/console")


class SpareConnections:
    """ASGI middleware that answers only health checks and the operator's requests on a spare connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["state"].get("spare") and not scope["path"].startswith(SERVED):
            message = "the service has reached its limit of connections; try again later"
            await Problem(503, message, code="overloaded", headers=BUSY).response()(scope, receive, send)
            return
        await self.app(scope, receive, send)
