"""Response formats and tools over HTTP on the embedded engine: shapes, logs, streams and errors."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bonbon.tools import ToolCall, written
from tests.support.service.api import CHAT, MESSAGES, events
from tests.support.service.embedded_api import EmbeddedApi, embedded_api
from tests.support.service.tool_templates import HERMES, LLAMA3, MISTRAL

ORDER = {
    "type": "object",
    "properties": {"id": {"enum": [7, 8]}, "fast": {"type": "boolean"}},
    "required": ["id", "fast"],
    "additionalProperties": False,
}
NUMBER = {"type": "object", "properties": {"id": {"enum": [7, 8]}}, "required": ["id"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER, "strict": True}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_order", "description": "Looks up.", "parameters": NUMBER}},
    {"type": "function", "function": {"name": "cancel"}},
]
NAMED = {"type": "function", "function": {"name": "cancel"}}
TEMPLATES = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[EmbeddedApi]:
    async with embedded_api(tmp_path, chat_template=HERMES) as api:
        yield api


def is_order(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"id", "fast"} and value["id"] in (7, 8) and isinstance(value["fast"], bool)


async def streamed(api: EmbeddedApi, **body: Any) -> list[Any]:
    response = await api.client.post(CHAT, json={"model": "base", "messages": MESSAGES, "stream": True, **body})
    assert response.status_code == 200, response.text
    return events(response.text)[0]


async def test_best_of_n_holds_every_candidate_to_the_format_and_never_trains_on_them(api: EmbeddedApi) -> None:
    body: dict[str, Any] = {"model": "bonbon", "best_of": 4, "seed": 1, "response_format": FORMAT, "max_tokens": 300}
    answer = await api.chat(**body, bonbon={"candidates": True})
    texts = [one["text"] for one in answer["bonbon"]["candidates"]]
    assert len(texts) == 4
    assert all(map(is_order, texts))
    assert answer["choices"][0]["message"]["content"] in texts
    assert answer["choices"][0]["finish_reason"] == "stop"
    group = await api.group(answer)
    assert group["unclean"] == "sampling"
    assert json.loads(group["response_format"]) == FORMAT
    chunks = await streamed(api, **{**body, "messages": [{"role": "user", "content": "Where is my order?"}]})
    text = "".join(one["delta"].get("content", "") for chunk in chunks for one in chunk["choices"])
    assert text == answer["choices"][0]["message"]["content"]


async def test_any_json_object(api: EmbeddedApi) -> None:
    answer = await api.chat(response_format={"type": "json_object"}, max_tokens=700, temperature=0.7, seed=2)
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


async def test_a_schema_that_is_not_supported_is_a_400_that_names_the_keyword(api: EmbeddedApi) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for strict in (True, False):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
        for stream in (True, False):
            body = {"model": "base", "messages": MESSAGES, "response_format": wanted, "stream": stream}
            error = (await api.post(CHAT, 400, **body))["error"]
            assert "uniqueItems" in error["message"]
            assert error["param"] == "response_format"
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    error = (await api.post(CHAT, 400, model="base", messages=MESSAGES, tools=tools, tool_choice="required"))["error"]
    assert "uniqueItems" in error["message"]
    assert error["param"] == "tools"


@pytest.mark.parametrize("template", TEMPLATES)
async def test_forced_calls_are_calls_and_come_whole_and_streamed(tmp_path: Path, template: str) -> None:
    async with embedded_api(tmp_path, chat_template=TEMPLATES[template]) as api:
        for choice in ("required", NAMED):
            body = {"tools": TOOLS, "tool_choice": choice, "best_of": 3, "seed": 1, "max_tokens": 700}
            answer = await api.chat("Where is my order?", **{**body, "model": "bonbon"})
            [found] = answer["choices"]
            assert found["finish_reason"] == "tool_calls"
            assert found["message"]["content"] is None
            calls = found["message"]["tool_calls"]
            for call in calls:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                assert call["type"] == "function"
                assert (name, json.loads(arguments)) in [
                    ("get_order", {"id": 7}),
                    ("get_order", {"id": 8}),
                    ("cancel", {}),
                ]
            if choice == NAMED:
                assert [call["function"]["name"] for call in calls] == ["cancel"]
            as_text = written(
                "", [ToolCall("", one["function"]["name"], one["function"]["arguments"]) for one in calls]
            )
            group = await api.group(answer)
            assert group["unclean"] == "sampling"
            assert as_text in [one["text"] for one in group["candidates"]]
            assert as_text in [completion for completions in api.reward.calls for completion in completions]
            single = await api.chat("Where is my order?", **{**body, "best_of": 1})
            chunks = await streamed(
                api, **{**body, "best_of": 1, "messages": [{"role": "user", "content": "Where is my order?"}]}
            )
            whole = [call["function"] for call in single["choices"][0]["message"]["tool_calls"]]
            pieces = [c for chunk in chunks for one in chunk["choices"] for c in one["delta"].get("tool_calls", [])]
            joined = [{"name": "", "arguments": ""} for _ in whole]
            for piece in pieces:
                joined[piece["index"]]["name"] += piece["function"].get("name", "")
                joined[piece["index"]]["arguments"] += piece["function"]["arguments"]
            assert joined == whole
            assert [piece["type"] for piece in pieces if piece.get("id")] == ["function"] * len(whole)
            assert len(pieces) > len(whole)
            assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
            assert not any(one["delta"].get("content") for chunk in chunks for one in chunk["choices"])


async def test_a_conversation_with_calls_is_rendered_and_a_free_choice_is_trained_on(api: EmbeddedApi) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_order", "arguments": '{"id": 7}'}}
    messages = [
        {"role": "user", "content": "Where is order 7?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "shipped", "tool_call_id": "c1"},
    ]
    for choice in ("auto", "none"):
        answer = await api.chat(messages=messages, tools=TOOLS, tool_choice=choice, best_of=3, max_tokens=40)
        group = await api.group(answer)
        assert group["unclean"] in (None, "tied")
        prompt = (await api.post("/detokenize", tokens=group["prompt_token_ids"]))["prompt"]
        assert '"description": "Looks up."' in prompt
        assert '<tool_call>\n{"name": "get_order", "arguments": {"id": 7}}\n</tool_call>' in prompt
        assert "<|tool|>shipped" in prompt
    counted = await api.post("/tokenize", messages=messages, tools=TOOLS)
    assert counted["tokens"] == group["prompt_token_ids"]
    call["function"] = {"name": "get_order", "arguments": "{broken"}
    error = (await api.post(CHAT, 400, model="base", messages=messages, tools=TOOLS))["error"]
    assert "'{broken'" in error["message"]
    assert error["param"] == "messages"


async def test_a_strict_function_forces_the_sampler(api: EmbeddedApi) -> None:
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    answer = await api.chat(tools=strict, best_of=2, max_tokens=40)
    assert answer["choices"][0]["message"]["content"]
    assert (await api.group(answer))["unclean"] == "sampling"


async def test_calls_or_an_answer_in_the_format(api: EmbeddedApi) -> None:
    seen = set()
    for bias in (-100, 100):  # against and for the character that begins a call
        [token] = (await api.post("/tokenize", prompt="<"))["tokens"]
        answer = await api.chat(tools=TOOLS, response_format=FORMAT, max_tokens=700, logit_bias={token: bias}, seed=1)
        message = answer["choices"][0]["message"]
        seen.add("calls" if message.get("tool_calls") else "content")
        assert message.get("tool_calls") or is_order(message["content"])
    assert seen == {"calls", "content"}


async def test_templates_without_tools_refuse_them_before_anything_is_drawn(tmp_path: Path) -> None:
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [called]}]
    async with embedded_api(tmp_path) as api:
        for body, param in (
            ({"messages": MESSAGES, "tools": TOOLS}, "tools"),
            ({"messages": MESSAGES, "tools": TOOLS, "tool_choice": "none"}, "tools"),
            ({"messages": turns}, "messages"),
        ):
            error = (await api.post(CHAT, 400, model="base", **body))["error"]
            assert "chat template does not support tools" in error["message"]
            assert error["param"] == param
        assert not api.reward.calls
        error = (await api.post("/tokenize", 400, messages=MESSAGES, tools=TOOLS))["error"]
        assert "chat template does not support tools" in error["message"]


async def test_a_template_that_shows_no_known_way_of_calling_names_the_option(tmp_path: Path) -> None:
    template = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
    async with embedded_api(tmp_path, chat_template=template) as api:
        error = (await api.post(CHAT, 400, model="base", messages=MESSAGES, tools=TOOLS))["error"]
        assert "engine_options.tool_parser" in error["message"]
