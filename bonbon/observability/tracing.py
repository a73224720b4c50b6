"""Traces: the names of all spans and attributes, and the functions that create spans.

Until `trace_to` is called, every span is empty, and opentelemetry need not be installed. No attribute ever contains
what a client or a model wrote. The `gen_ai` names are those of OpenTelemetry's semantic conventions for generative AI,
which are still in development.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

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


class Span(Protocol):
    """A span that is being recorded."""

    def set(self, key: Key, value: Value | None) -> None:
        """Sets an attribute; None leaves it unset."""
        ...

    def rename(self, name: str) -> None:
        """Changes the name of the span, where it is known only at its end."""
        ...


class _EmptySpan:
    def set(self, key: Key, value: Value | None) -> None:
        return

    def rename(self, name: str) -> None:
        return


class _RecordedSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, key: Key, value: Value | None) -> None:
        if value is not None:
            self._span.set_attribute(key, value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)


EMPTY_SPAN: Span = _EmptySpan()
_tracer: "Tracer | None" = None


def trace_to(provider: "TracerProvider | None") -> None:
    """Sends spans to `provider` from now on; None stops tracing."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("bonbon")


@contextmanager
def span(name: str, **attributes: Value | None) -> Iterator[Span]:
    """Opens a span below the request's span until the block ends; `attributes` are named after the members of `Key`.

    An exception marks the span as failed, with only its type, because messages may quote what clients wrote. The span
    never becomes the current span, so the block may yield, as generators do.
    """
    if _tracer is None:
        yield EMPTY_SPAN
        return
    started = _tracer.start_span(name, record_exception=False, set_status_on_exception=False)
    recorded = _RecordedSpan(started)
    for key, value in attributes.items():
        recorded.set(Key[key], value)
    try:
        yield recorded
    except BaseException as error:
        _failed(started, type(error).__name__)
        raise
    finally:
        started.end()


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """Opens the span of a whole request, current until the block ends; continues the trace that `traceparent` names."""
    if _tracer is None:
        yield EMPTY_SPAN
        return
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(dict(headers))
    started = _tracer.start_span(name, parent, kind=trace.SpanKind.SERVER, record_exception=False)
    token = context.attach(trace.set_span_in_context(started, parent))
    try:
        yield _RecordedSpan(started)
    except BaseException as error:
        _failed(started, type(error).__name__)
        raise
    finally:
        context.detach(token)
        started.end()


def current_ids() -> dict[str, str]:
    """Returns the `trace_id` and `span_id` of the current request for its log lines; empty when it is not traced."""
    if _tracer is None:
        return {}
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}


def _failed(started: Any, error: str) -> None:
    from opentelemetry.trace import StatusCode

    started.set_attribute(Key.ERROR, error)
    started.set_status(StatusCode.ERROR)
