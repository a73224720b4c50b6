"""Errors: OpenAI's envelope, the right status, and the name of the invalid field."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import Conflict
from service.errors import Problem, problem_of
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, Api, error_of, open_api, serve


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path, max_best_of=16, max_prompts=3, max_body_bytes=20_000) as running:
        yield running


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "get_order"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("chat_template_kwargs", json.loads('{"a": ' * 300 + "1" + "}" * 300)),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("logit_bias", {"5": 100.1}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"13": 1}),  # the fake engine has 13 tokens
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("logit_bias", [5]),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3),
        ("frequency_penalty", False),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", True),
        ("top_k", -2),
        ("top_k", 2**31),
        ("top_k", 1.5),
        ("min_p", 1.1),
        ("min_tokens", -1),
        ("min_tokens", 257),  # more than max_tokens, which is 256
        ("ignore_eos", 1),
        ("chat_template_kwargs", {"add_generation_prompt": False}),
        ("chat_template_kwargs", "enable_thinking"),
        ("continue_final_message", True),  # the final message is a user's
        ("parallel_tool_calls", "no"),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("service_tier", "priority"),
        ("anything_else", 1),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("n", 0),
        ("n", 129),
        ("n", 17),
        ("n", "2"),
        ("n", 1.5),
        ("n", True),
        ("best_of", 0),
        ("best_of", 17),
        ("max_tokens", 0),
        ("max_completion_tokens", -1),
        ("stop", [str(i) for i in range(9)]),
        ("stop", ""),
        ("stop", 7),
        ("seed", 2**63),
        ("top_logprobs", 21),
        ("top_logprobs", 2),  # without logprobs
        ("logprobs", 1),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),  # without stream
        ("metadata", {str(i): "" for i in range(17)}),
        ("user", 5),
        ("messages", []),
        ("messages", "hello"),
        ("model", None),
        ("bonbon", 1),
    ],
)
async def test_a_field_of_a_chat_is_refused_by_name(api: Api, param: str, value: Any) -> None:
    error = await api.refusal(**{param: value})
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]
    assert error["code"] in {"invalid_value", "unknown_parameter"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "tools"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "allowed_tools", "function": {"name": "f"}}}, "tool_choice.type"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f", "strict": True}}},
            "tool_choice.function.strict",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "name": "\ud800"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": "x", "reasoning_content": "I think"}]},
            "messages[1].reasoning_content",
        ),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[1].audio"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"bonbon": {"candidate": True}}, "bonbon.candidate"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"user": "ada", "safety_identifier": "bob"}, "safety_identifier"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ],
)
async def test_the_param_is_the_path_of_what_is_wrong(api: Api, body: dict[str, Any], param: str) -> None:
    # Escaped, so that half a surrogate pair can be sent at all.
    content = json.dumps({"model": "bonbon", "messages": MESSAGES, **body})
    response = await api.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("suffix", "end"),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", None),
        ("prompt", [""]),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", [1, True]),
        ("prompt", [-1]),
        ("prompt", [2**31]),
        ("prompt", {"text": "a"}),
        ("prompt", ["a", "b", "c", "d"]),
        ("logprobs", 6),
        ("messages", MESSAGES),
        ("max_completion_tokens", 5),
    ],
)
async def test_a_field_of_a_completion_is_refused_by_name(api: Api, param: str, value: Any) -> None:
    assert (await api.refusal(COMPLETIONS, **{param: value}))["param"] == param


async def test_what_exceeds_the_context_is_refused_in_openai_s_words(tmp_path: Path) -> None:
    limit = "This model's maximum context length is 20 tokens. However, "
    remedy = "Please reduce the length of the {0} or completion."
    both = f"you requested 21 tokens (17 in the {{0}}, 4 in the completion). {remedy}"
    full = f"you requested 21 tokens (20 in the {{0}}, 1 in the completion). {remedy}"
    alone = "your {0} resulted in 30 tokens. Please reduce the length of the {0}."
    cases: list[tuple[int, dict[str, Any], str, str | None]] = [
        (17, {"max_tokens": 4}, both, "max_tokens"),
        (20, {}, full, None),
        (30, {}, alone, None),
        (30, {"max_tokens": 4}, alone, None),
    ]
    async with open_api(tmp_path, engine=FakeEngine(context_length=20), default_max_tokens=100) as api:
        for words, asked, message, param in cases:
            text = "word " * words
            for stream in (False, True):
                for path, name, given in (
                    (COMPLETIONS, "prompt", text),
                    (CHAT, "messages", [{"role": "user", "content": text}]),
                ):
                    error = await api.refusal(path, **{name: given, **asked, "stream": stream})
                    assert error["message"] == limit + message.format(name)
                    assert (error["code"], error["param"]) == ("context_length_exceeded", param or name)
        longer = [{"role": "user", "content": "word " * 17}]
        assert (await api.refusal(messages=longer, max_completion_tokens=4))["param"] == "max_completion_tokens"


async def test_a_missing_field_is_named(api: Api) -> None:
    for body, param in (({"messages": MESSAGES}, "model"), ({"model": "bonbon"}, "messages")):
        error = error_of(await api.post(CHAT, **body))
        assert (error["param"], error["code"]) == (param, "missing_required_parameter")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unknown_model_is_a_404(api: Api, stream: bool) -> None:
    error = await api.refusal(status=404, model="nobody", stream=stream)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "bonbon" in error["message"]


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", {}),
        (b"{", {"content-type": "application/json"}),
        (b"[]", {"content-type": "application/json"}),
        (b'"x"', {"content-type": "application/json"}),
        (b'{"model": "\xff"}', {"content-type": "application/json"}),
        (b'{"model": NaN}', {"content-type": "application/json"}),
        (b'{"model": "bonbon", "messages": ' + b"[" * 9000, {"content-type": "application/json"}),
        (b'{"model": "bonbon"}', {"content-type": "text/plain"}),
        (b'{"model": "bonbon"}', {}),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(api: Api, content: bytes, headers: dict[str, str]) -> None:
    response = await api.client.post(CHAT, content=content, headers=headers)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


async def test_not_a_number_is_not_a_temperature(api: Api) -> None:
    content = json.dumps({"model": "bonbon", "messages": MESSAGES, "temperature": float("nan")})
    response = await api.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(response)["param"] == "temperature"


@pytest.mark.parametrize(
    ("content", "headers", "status", "said", "code"),
    [
        (b"\x1f\x8b\x08", {"content-encoding": "gzip"}, 415, "encoded as 'gzip'", "unsupported_content_encoding"),
        (b"{}", {"content-encoding": "identity"}, 400, "model", "missing_required_parameter"),
        ('{"model": "é"}'.encode("latin-1"), {}, 400, "not valid UTF-8", "invalid_json"),
        (b'{"model": ' + b"[" * 9000, {}, 400, "nested too deeply", "invalid_json"),
        (b'{"model": "bonbon",}', {}, 400, "not valid JSON", "invalid_json"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said(
    api: Api, content: bytes, headers: dict[str, str], status: int, said: str, code: str
) -> None:
    for path in (CHAT, COMPLETIONS, "/v1/feedback"):
        response = await api.client.post(path, content=content, headers={"content-type": "application/json"} | headers)
        if path == "/v1/feedback" and code == "missing_required_parameter":
            continue
        assert response.status_code == status
        error = error_of(response)
        assert said in error["message"]
        assert error["code"] == code


async def test_a_wrong_query_is_refused_by_name(api: Api) -> None:
    response = await api.client.get("/admin/charts/frontier", params={"kl": "-1"})
    assert (response.status_code, error_of(response)["param"]) == (400, "kl")
    assert error_of(response)["message"].startswith("kl: ")


async def test_a_slash_at_the_end_of_a_path_does_not_matter(api: Api) -> None:
    response = await api.post(f"{CHAT}/", model="bonbon", messages=MESSAGES)
    assert (response.status_code, response.json()["object"]) == (200, "chat.completion")
    assert (await api.client.get("/v1/models/")).json() == (await api.client.get("/v1/models")).json()
    assert (await api.client.get("/v1/models/base/")).json()["id"] == "base"
    assert (await api.client.get("/health/live/")).status_code == 200
    assert (await api.client.get("/console/")).status_code == 200


async def test_head_is_get_without_the_body(api: Api) -> None:
    for path in ("/v1/models", "/v1/models/base", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
        response = await api.client.head(path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == (await api.client.get(path)).headers["content-type"]
    assert (await api.client.head("/v1/models/nobody")).status_code == 404
    response = await api.client.head(CHAT)
    assert (response.status_code, response.content, response.headers["allow"]) == (405, b"", "POST")


async def test_unknown_paths_and_methods_have_the_envelope_too(api: Api) -> None:
    for path in ("/v1/nothing", "/chat/completions", "/v1/v1/chat/completions", "/" + "x" * 5000):
        response = await api.client.post(path)
        error = error_of(response)
        assert (response.status_code, error["code"]) == (404, "not_found")
        assert f"there is no route POST {path[:100]}" in error["message"]
        assert "POST /v1/chat/completions, " in error["message"]
        assert "GET /v1/models, " in error["message"]
        assert error["message"].endswith("describes all routes")
    response = await api.client.get(CHAT)
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert error_of(response)["message"] == f"{CHAT} does not take GET: use POST"
    assert response.headers["allow"] == "POST"


async def test_what_a_client_sends_is_not_echoed_at_length(api: Api) -> None:
    for body in ({"model": "x" * 9000}, {"x" * 9000: 1}, {"temperature": "9" * 9000}):
        response = await api.post(CHAT, **{"model": "bonbon", "messages": MESSAGES, **body})
        assert response.status_code in (400, 404)
        assert len(response.content) < 1500


async def test_a_body_above_the_limit_is_a_413(api: Api) -> None:
    content = json.dumps({"model": "bonbon", "messages": [{"role": "user", "content": "x" * 30_000}]}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    for sent in (content, chunks()):
        response = await api.client.post(CHAT, content=sent, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
        assert "x-request-id" in response.headers


def test_a_real_server_refuses_a_chunked_body_while_it_comes(tmp_path: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield b"x" * 10_000

    with serve(tmp_path, max_body_bytes=50_000) as server:
        headers = {"content-type": "application/json"}
        try:
            response = httpx2.post(server.url + CHAT, content=endless(), headers=headers)
        except httpx2.TransportError:
            pass  # the server may hang up before the client reads
        else:
            assert response.status_code == 413
        assert sent < 50_000_000 or server.engine.running == 0
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")


async def test_the_key_is_needed_when_one_is_set(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_key="correct") as api:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic correct"}):
            for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/base"), ("POST", CHAT),
                                 ("POST", COMPLETIONS), ("POST", "/v1/feedback")):  # fmt: skip
                response = await api.client.request(method, path, headers=headers, json={"model": "bonbon"})
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        api.client.headers["authorization"] = "Bearer correct"
        assert (await api.chat())["choices"]
        assert (await api.client.get("/v1/models")).status_code == 200


async def test_an_engine_that_fails_is_a_503_to_be_retried(api: Api) -> None:
    api.engine.failure = "the accelerator is gone"
    response = await api.post(CHAT, model="bonbon", messages=MESSAGES)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert error_of(response) == {
        "message": "the accelerator is gone", "type": "server_error", "param": None, "code": "unavailable",
    }  # fmt: skip


async def test_an_unexpected_failure_tells_nothing_of_the_insides(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret insides")

    monkeypatch.setattr(api.engine, "draw", fail)
    response = await api.client.post(
        CHAT, json={"model": "bonbon", "messages": MESSAGES}, headers={"x-request-id": "the-one"}
    )
    assert response.status_code == 500
    assert "insides" not in response.text
    assert (error_of(response)["code"], response.headers["x-request-id"]) == ("internal_error", "the-one")
    logged = capsys.readouterr().out
    assert "secret insides" in logged
    assert "the-one" in logged


async def test_an_answer_that_the_engine_cut_off_is_not_given(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = api.engine.draw

    async def cut(request: Any) -> AsyncIterator[Any]:
        async for event in whole(request):
            yield event
            await asyncio.sleep(0)
            break

    monkeypatch.setattr(api.engine, "draw", cut)
    assert (await api.refusal(status=503))["message"].startswith("the engine stopped before the answer was complete")
    assert await api.groups() == 0

    async def nothing(request: Any) -> AsyncIterator[Any]:
        return
        yield

    monkeypatch.setattr(api.engine, "draw", nothing)
    assert "before it started" in (await api.refusal(status=503))["message"]


async def test_web_pages_may_use_the_api_only_from_origins_that_are_named(tmp_path: Path) -> None:
    preflight = {
        "origin": "https://app.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }
    origin, allowed = {"origin": "https://app.example.com"}, "access-control-allow-origin"
    async with open_api(tmp_path / "off") as api:
        assert (await api.client.options(CHAT, headers=preflight)).status_code == 405
        assert allowed not in (await api.client.get("/v1/models", headers=origin)).headers
    async with open_api(tmp_path / "on", cors_origins=["https://app.example.com"], api_key="secret") as api:
        response = await api.client.options(CHAT, headers=preflight)
        assert response.status_code == 200
        assert response.headers[allowed] == "https://app.example.com"
        assert "x-stainless-lang" in response.headers["access-control-allow-headers"]
        # Errors can be read, too, those of a wrong key included.
        response = await api.client.get("/v1/models", headers=origin)
        assert (response.status_code, response.headers[allowed]) == (401, "https://app.example.com")
        other = {"origin": "https://elsewhere.example"}
        assert (await api.client.options(CHAT, headers=preflight | other)).status_code == 400
        assert allowed not in (await api.client.get("/v1/models", headers=other)).headers
        for path in ("/admin/versions", "/health/ready", "/metrics"):
            assert allowed not in (await api.client.get(path, headers=origin)).headers


@pytest.mark.parametrize("given", ["mine", "a.B-c_9", "x" * 128])
async def test_a_plain_request_id_is_kept(api: Api, given: str) -> None:
    response = await api.client.get("/v1/models", headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b"two words", b"x" * 129, b"<script>", "é".encode()])
async def test_any_other_request_id_is_replaced(api: Api, given: bytes) -> None:
    response = await api.client.get("/v1/models", headers={b"x-request-id": given})
    made = response.headers["x-request-id"]
    assert made.startswith("req_")
    assert made != (await api.client.get("/v1/models")).headers["x-request-id"]


def test_a_conflict_is_a_409() -> None:
    assert problem_of(Conflict("somebody else was first")) == Problem(409, "somebody else was first", code="conflict")


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (r'"tools": [{"type": "function", "function": {"name": "f", "description": "\ud800"}}]', "description"),
        ('"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": NaN}}}]', "parameters"),
        (
            r'"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"\ud800": 1}}}',
            "schema",
        ),
    ],
)
async def test_what_json_cannot_hold_is_refused_by_name(api: Api, field: str, param: str) -> None:
    """Python accepts NaN and half a surrogate pair in JSON, but neither can be sent to an engine."""
    body = f'{{"model": "bonbon", "messages": {json.dumps(MESSAGES)}, {field}}}'
    response = await api.client.post(CHAT, content=body.encode(), headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["param"].endswith(f".{param}")
