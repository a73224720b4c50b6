"""Traces and logs of real requests are linked and contain no text of prompts or answers."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bonbon.observability.logs import configure_logs
from bonbon.observability.tracing import span, trace_to
from bonbon.settings import ServiceSettings
from service.middleware.request_tracing import exported_traces
from tests.support.service.api import CHAT, COMPLETIONS, Api, open_api

SECRET = "zwiebelkuchen"
ASK = {"model": "bonbon", "messages": [{"role": "user", "content": f"I love {SECRET}"}], "max_tokens": 8}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_to(provider)
    yield exporter
    trace_to(None)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path) as running:
        yield running


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in spans.get_finished_spans()}
    assert len(found) == len(spans.get_finished_spans())
    return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_request_is_one_trace_from_http_to_the_log(api: Api, spans: InMemorySpanExporter) -> None:
    response = await api.client.post(CHAT, json=ASK, headers={"x-request-id": "the-one"})
    found = by_name(spans)
    assert set(found) == {f"POST {CHAT}", "draw", "score", "log"}
    http = found[f"POST {CHAT}"]
    assert http.kind is SpanKind.SERVER
    assert http.parent is None
    assert attributes(http) == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "bonbon.request.id": "the-one",
    }
    for name in ("draw", "score", "log"):
        parent = found[name].parent
        assert parent is not None
        assert parent.span_id == http.context.span_id
        assert found[name].context.trace_id == http.context.trace_id
    extension = response.json()["bonbon"]
    drawn = attributes(found["draw"])
    assert (drawn["gen_ai.operation.name"], drawn["gen_ai.request.model"]) == ("chat", "fake")
    assert (drawn["gen_ai.request.choice.count"], drawn["gen_ai.request.max_tokens"]) == (8, 8)
    assert drawn["gen_ai.usage.output_tokens"] == extension["tokens_drawn"]
    assert attributes(found["score"]) == {"bonbon.reward.name": "fake", "bonbon.candidates": 8}
    logged = attributes(found["log"])
    assert (logged["bonbon.group.id"], logged["bonbon.kept"]) == (extension["group_id"], "logged")


async def test_a_trace_that_began_elsewhere_goes_on(api: Api, spans: InMemorySpanExporter) -> None:
    await api.client.post(CHAT, json=ASK, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    for one in spans.get_finished_spans():
        assert one.context.trace_id == int(TRACE, 16)
    parent = by_name(spans)[f"POST {CHAT}"].parent
    assert parent is not None
    assert parent.span_id == int(PARENT, 16)


async def test_requests_at_once_keep_their_spans_apart(api: Api, spans: InMemorySpanExporter) -> None:
    streamed = ASK | {"stream": True, "model": "base"}
    prompts = {"model": "bonbon", "prompt": ["Dear customer", "Dear friend"], "max_tokens": 8}
    asks = [(CHAT, ASK), (CHAT, streamed), (COMPLETIONS, prompts)] * 3
    await asyncio.gather(*(api.client.post(path, json=body) for path, body in asks))
    finished = spans.get_finished_spans()
    roots = {one.context.span_id: one for one in finished if one.parent is None}
    assert len(roots) == len(asks)
    below: dict[int, list[str]] = {span_id: [] for span_id in roots}
    for one in finished:
        if one.parent is not None:
            below[one.parent.span_id].append(one.name)
            assert one.context.trace_id == roots[one.parent.span_id].context.trace_id
    assert sorted(map(sorted, below.values())) == sorted(
        [["draw", "log", "score"]] * 3 + [["draw", "log"]] * 3 + [["draw", "draw", "log", "log", "score", "score"]] * 3
    )


async def test_a_failure_is_marked_by_its_kind_alone(api: Api, spans: InMemorySpanExporter) -> None:
    api.reward.failure = f"cannot read {SECRET}"
    assert (await api.client.post(CHAT, json=ASK)).status_code == 200
    scored = by_name(spans)["score"]
    assert scored.status.status_code is StatusCode.ERROR
    assert attributes(scored)["error.type"] == "RewardError"
    spans.clear()
    assert (await api.client.post(CHAT, json=ASK | {"model": "gone"})).status_code == 404
    assert attributes(by_name(spans)[f"POST {CHAT}"])["http.response.status_code"] == 404
    spans.clear()
    assert (await api.client.get(f"/{SECRET}")).status_code == 404
    assert list(by_name(spans)) == ["GET unmatched"]


async def test_no_span_holds_what_was_written(api: Api, spans: InMemorySpanExporter) -> None:
    await exercise(api)
    texts = [one.to_json() for one in spans.get_finished_spans()]
    assert len(texts) > 10
    assert not [text for text in texts if SECRET in text]
    assert not [text for text in texts if "answer" in json.dumps(json.loads(text)["attributes"])]


async def test_probes_and_the_console_are_not_traced(api: Api, spans: InMemorySpanExporter) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/console/"):
        assert (await api.client.get(path)).status_code == 200
    assert spans.get_finished_spans() == ()


async def exercise(api: Api) -> None:
    """Sends requests that succeed and one for each kind of failure."""
    await api.client.post(CHAT, json=ASK)
    await api.client.post(CHAT, json=ASK | {"stream": True, "stream_options": {"include_usage": True}})
    await api.client.post(COMPLETIONS, json={"model": "bonbon", "prompt": [SECRET, SECRET], "echo": True})
    for wrong in ({"model": SECRET}, {"temperature": SECRET}, {SECRET: 1}, {"n": 1000}, {"messages": SECRET}):
        assert (await api.client.post(CHAT, json=ASK | wrong)).status_code in (400, 404)
    await api.client.post(CHAT, content=f'{{"{SECRET}'.encode())
    await api.client.post("/v1/feedback", json={"group_id": SECRET, "comment": SECRET})
    await api.client.post("/admin/playground", json={"prompt": SECRET, "n": 3})
    await api.client.get(f"/{SECRET}", headers={"authorization": f"Bearer {SECRET}"})
    api.reward.failure = "it is away"
    await api.client.post(CHAT, json=ASK)


async def test_log_lines_are_json_with_the_request_and_without_what_was_written(
    api: Api, spans: InMemorySpanExporter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("httpx2"), "disabled", True)  # the test's client, not the service
    configure_logs(json=True)
    api.reward.failure = "it is away"
    await api.client.post(CHAT, json=ASK, headers={"x-request-id": "the-one", "traceparent": f"00-{TRACE}-{PARENT}-01"})
    await exercise(api)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "the-one"]
    assert (line["event"], line["level"], line["trace_id"]) == (
        "the reward failed; answering with the first candidate",
        "warning",
        TRACE,
    )
    assert {"timestamp", "logger", "span_id"} <= line.keys()
    assert not [line for line in lines if "request_id" not in line]
    assert SECRET not in json.dumps(lines)


@pytest.mark.parametrize("headers", [{"traceparent": f"00-{TRACE}-{PARENT}-01"}, {}])
async def test_log_lines_name_the_clients_trace_while_traces_are_off(
    api: Api, capsys: pytest.CaptureFixture[str], headers: dict[str, str]
) -> None:
    configure_logs(json=True)
    api.reward.failure = "it is away"
    await api.client.post(CHAT, json=ASK, headers=headers)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"].startswith("the reward failed")]
    assert line.get("trace_id") == (TRACE if headers else None)


def test_without_a_provider_a_span_costs_nothing_and_is_nothing() -> None:
    with pytest.raises(ValueError, match="mine"), span("draw", MODEL="tiny"):
        raise ValueError("mine")


def test_traces_need_what_the_extra_brings() -> None:
    program = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
from bonbon.errors import UserError
from bonbon.settings import ServiceSettings
from service.app import create_app
from service.middleware.request_tracing import exported_traces
with exported_traces(ServiceSettings()):
    pass
try:
    with exported_traces(ServiceSettings(traces="otlp")):
        pass
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "service.traces needs opentelemetry.sdk, opentelemetry.exporter: run pip install 'bonbon-serve[otel]'\n"
    )


def test_traces_are_sent_by_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports traces to this test's own collector."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with exported_traces(ServiceSettings(traces="otlp")), span("draw", MODEL="tiny"):
        pass
    server.shutdown()
    thread.join()
    server.server_close()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"bonbon" in body
    assert b"gen_ai.request.model" in body


def test_another_destination_is_refused() -> None:
    with pytest.raises(ValueError, match="traces"):
        ServiceSettings(traces="zipkin")
