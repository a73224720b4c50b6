"""Traces: the names of all spans and attributes, and the functions that create spans.

Until `trace_to` is called, nothing is recorded, and only opentelemetry's API is needed. No attribute ever contains what
a client or a model wrote. The `gen_ai` names are those of OpenTelemetry's semantic conventions for generative AI,
which are still in development.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum

from opentelemetry import context, trace
from opentelemetry.trace import NoOpTracerProvider, Span, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Value = str | bool | int | float


class Name(StrEnum):
    """The names of spans; the span of a request is named after its route."""

    DRAW = "draw"
    SCORE = "score"
    LOG = "log"


class Key(StrEnum):
    """The names of attributes."""

    METHOD = "http.request.method"
    ROUTE = "http.route"
    STATUS = "http.response.status_code"
    REQUEST_ID = "bonbon.request.id"
    ERROR = "error.type"
    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    MODEL = "gen_ai.request.model"
    CHOICES = "gen_ai.request.choice.count"
    MAX_TOKENS = "gen_ai.request.max_tokens"
    TEMPERATURE = "gen_ai.request.temperature"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    REWARD = "bonbon.reward.name"
    CANDIDATES = "bonbon.candidates"
    GROUP = "bonbon.group.id"
    KEPT = "bonbon.kept"
    UNCLEAN = "bonbon.unclean"


_propagator = TraceContextTextMapPropagator()
_tracer = NoOpTracerProvider().get_tracer("bonbon")


def trace_to(provider: TracerProvider | None) -> None:
    """Sends spans to `provider` from now on; None stops tracing."""
    global _tracer
    _tracer = (provider or NoOpTracerProvider()).get_tracer("bonbon")


@contextmanager
def span(name: str, **attributes: Value | None) -> Iterator[Span]:
    """Opens a span below the request's span until the block ends; `attributes` are named after the members of `Key`.

    The span never becomes the current span, so the block may yield, as generators do.
    """
    known: dict[str, Value] = {Key[key]: value for key, value in attributes.items() if value is not None}
    with _ended(_tracer.start_span(name, attributes=known)) as opened:
        yield opened


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """Opens the span of a whole request, current until the block ends; continues the trace that `traceparent` names."""
    parent = _propagator.extract(headers)
    with _ended(_tracer.start_span(name, parent, kind=trace.SpanKind.SERVER)) as opened:
        token = context.attach(trace.set_span_in_context(opened, parent))
        try:
            yield opened
        finally:
            context.detach(token)


def current_ids() -> dict[str, str]:
    """Returns the `trace_id` and `span_id` of the current request for its log lines; empty when it is in no trace.

    They are those of the client's `traceparent` while nothing is recorded here.
    """
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}


@contextmanager
def _ended(opened: Span) -> Iterator[Span]:
    """Ends the span with the block.

    An exception marks it as failed, with only its type, because messages may quote what clients wrote.
    """
    try:
        yield opened
    except BaseException as error:
        opened.set_attribute(Key.ERROR, type(error).__name__)
        opened.set_status(StatusCode.ERROR)
        raise
    finally:
        opened.end()
