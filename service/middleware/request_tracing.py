"""Traces each request through HTTP, generation, scoring and logging, if tracing is configured."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bonbon import __version__
from bonbon.extras import need
from bonbon.observability.tracing import Key, request_span, trace_to
from bonbon.settings import ServiceSettings
from service.middleware.request_id import name_of

UNTRACED = ("/health/", "/metrics", "/console")


class TraceRequests:
    """ASGI middleware that records a span for each request other than probes, metric scrapes and the console's
    files."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(UNTRACED):
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        with request_span(method, Headers(scope=scope)) as span:
            span.set_attribute(Key.METHOD, method)
            span.set_attribute(Key.REQUEST_ID, name_of(scope))

            async def observe(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute(Key.STATUS, message["status"])
                await send(message)

            try:
                await self.app(scope, receive, observe)
            finally:
                # The router stores the matched route in the scope. An unmatched path is not recorded.
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.set_attribute(Key.ROUTE, route)
                span.update_name(f"{method} {route or 'unmatched'}")


@contextmanager
def exported_traces(settings: ServiceSettings) -> Iterator[None]:
    """Exports traces while the block runs, if the settings say so, and sends the remaining ones at its end.

    OpenTelemetry's own variables set the destination (OTEL_EXPORTER_OTLP_ENDPOINT), its options, and the sampling
    (OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG).

    Raises:
        UserError: opentelemetry's SDK or exporter is not installed.
    """
    if settings.traces == "off":
        yield
        return
    need("service.traces", "otel", "opentelemetry.sdk", "opentelemetry.exporter", param="service.traces")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource({SERVICE_NAME: "bonbon", SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace_to(provider)
    try:
        yield
    finally:
        trace_to(None)
        provider.shutdown()
