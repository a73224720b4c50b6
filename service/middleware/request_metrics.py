"""Counts and times every request."""

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics.process_metrics import Metrics


class MeasureRequests:
    """ASGI middleware that counts and times requests by route template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = perf_counter(), 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, observe)
        finally:
            # The router stores the matched route in the scope. Paths without a route must not create their own labels.
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requested(route, status, perf_counter() - start)
