"""`POST /v1/responses`: complete and streamed answers."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.engines.fake_engine import FakeEngine
from bonbon.pairs.group_records import Group
from bonbon.prompt import Prompt
from service.schemas.message import ChatMessage
from service.schemas.responses_api.response_input import InputCall, messages_of
from service.schemas.responses_api.response_replies import ResponseEvent, ResponseReply
from tests.support.service.api import CHAT, MESSAGES, Api, error_of, open_api
from tests.support.service.calling_engine import CALLED, REPLY, CallingEngine

RESPONSES = "/v1/responses"
QUESTION = "Where is my order?"
FUNCTION = {"type": "function", "name": CALLED, "parameters": {"type": "object", "properties": {}}, "strict": False}
CHAT_FUNCTION = {"type": "function", "function": {k: v for k, v in FUNCTION.items() if k != "type"}}
CALL = {"type": "function_call", "call_id": "c1", "name": CALLED, "arguments": '{"id": 7}'}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": CALLED, "arguments": '{"id": 7}'}}
WHOLE = ["response.created", "response.in_progress"]
TEXT = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
TEXT_OPENED = ["response.output_item.added", "response.content_part.added"]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path) as running:
        yield running


@pytest.fixture
async def calling(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path, engine=CallingEngine()) as running:
        yield running


async def post(api: Api, **body: Any) -> httpx2.Response:
    return await api.post(RESPONSES, **{"model": "bonbon", "input": QUESTION, "seed": 1, **body})


async def ask(api: Api, **body: Any) -> dict[str, Any]:
    response = await post(api, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    ResponseReply.model_validate(answer)
    return answer


def read(text: str) -> list[dict[str, Any]]:
    """Returns the events of a stream after checking that each is valid, named by its type and numbered in order."""
    blocks = [block for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        ResponseEvent.model_validate(event)
        assert (name, event["sequence_number"]) == (f"event: {event['type']}", number)
        found.append(event)
    return found


async def stream(api: Api, **body: Any) -> list[dict[str, Any]]:
    response = await post(api, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return read(response.text)


def text_of(answer: dict[str, Any]) -> str:
    [message] = answer["output"]
    [part] = message["content"]
    text: str = part["text"]
    return text


def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether two answers differ only in their ids and times."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: known(v) for k, v in value.items() if k not in ("id", "created_at", "completed_at", "group_id")}
        return [known(entry) for entry in value] if isinstance(value, list) else value

    return bool(known(answer) == known(other))


async def logged(api: Api, answer: dict[str, Any]) -> Group:
    group = await api.state.pair_log.group(answer["bonbon"]["group_id"])
    assert group is not None
    return group


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_the_answer_is_that_of_the_chat(api: Api, model: str) -> None:
    chat = await api.chat(model=model)
    answer = await ask(api, model=model, bonbon={"candidates": True})
    assert text_of(answer) == chat["choices"][0]["message"]["content"]
    assert (answer["status"], answer["error"], answer["incomplete_details"]) == ("completed", None, None)
    assert answer["completed_at"] >= answer["created_at"]
    usage, counted = answer["usage"], chat["usage"]
    assert usage["input_tokens"] == counted["prompt_tokens"]
    assert usage["output_tokens"] == counted["completion_tokens"]
    assert usage["total_tokens"] == counted["total_tokens"]
    for key in ("version", "n", "chosen", "tokens_drawn", "win_probabilities"):
        assert answer["bonbon"][key] == chat["bonbon"][key]
    assert len(answer["bonbon"]["candidates"]) == answer["bonbon"]["n"] == (8 if model == "bonbon" else 1)


async def test_it_repeats_what_was_asked_for(api: Api) -> None:
    asked = {
        "instructions": "Be kind.", "max_output_tokens": 90, "metadata": {"page": "help"}, "temperature": 0.5,
        "top_p": 0.9, "parallel_tool_calls": False, "user": "ada", "safety_identifier": "ada",
    }  # fmt: skip
    answer = await ask(api, **asked)
    assert {name: answer[name] for name in asked} == asked
    plain = await ask(api)
    assert (plain["store"], plain["background"], plain["previous_response_id"]) == (False, False, None)
    assert (plain["temperature"], plain["top_p"], plain["tool_choice"], plain["tools"]) == (1.0, 1.0, "auto", [])
    assert (plain["text"], plain["truncation"]) == ({"format": {"type": "text"}}, "disabled")


async def test_it_is_logged_as_a_chat_is(api: Api) -> None:
    answer = await ask(api, user="ada", metadata={"page": "help"}, instructions="Be kind.", max_output_tokens=40)
    group = await logged(api, answer)
    assert (group.user, group.metadata, group.unclean) == ("ada", {"page": "help"}, None)
    assert (group.sampling.max_tokens, group.sampling.seed, group.n) == (40, 1, 8)
    assert group.prompt == Prompt.chat({"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION})
    assert (await ask(api, store=False))["bonbon"]["group_id"] is None
    assert await api.groups() == 1


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ("Hello", [{"role": "user", "content": "Hello"}]),
        ([{"role": "developer", "content": "Hi"}], [{"role": "developer", "content": "Hi"}]),
        (
            [
                {"type": "message", "role": "user", "content": [
                    {"type": "input_text", "text": "One"}, {"type": "input_text", "text": "Two"}]},
                {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": "final_answer",
                 "content": [{"type": "output_text", "text": "Three", "annotations": [], "logprobs": []}]},
                {"role": "user", "content": "Four"},
            ],
            [
                {"role": "user", "content": "One\nTwo"},
                {"role": "assistant", "content": "Three"},
                {"role": "user", "content": "Four"},
            ],
        ),
        (
            [
                {"role": "user", "content": "One"},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
                CALL | {"id": "fc_1", "status": "completed"},
                CALL | {"call_id": "c2"},
                {"type": "function_call_output", "call_id": "c1", "output": "shipped", "id": "fo_1"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "lost"}]},
                {"role": "assistant", "content": "One moment."},
                CALL | {"call_id": "c3"},
                {"type": "function_call_output", "call_id": "c3", "output": "found", "name": "finder"},
            ],
            [
                {"role": "user", "content": "One"},
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL, CHAT_CALL | {"id": "c2"}]},
                {"role": "tool", "content": "shipped", "tool_call_id": "c1"},
                {"role": "tool", "content": "lost", "tool_call_id": "c2"},
                {"role": "assistant", "content": "One moment.", "tool_calls": [CHAT_CALL | {"id": "c3"}]},
                {"role": "tool", "content": "found", "tool_call_id": "c3", "name": "finder"},
            ],
        ),
    ],
    ids=["text", "developer", "messages", "calls"],
)  # fmt: skip
async def test_an_input_reads_as_the_chat_that_it_stands_for(calling: Api, asked: Any, messages: Any) -> None:
    response, chat = await ask(calling, input=asked), await calling.chat(messages=messages)
    assert (await logged(calling, response)).prompt == (await logged(calling, chat)).prompt


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "name": CALLED}])
async def test_tools_are_offered_as_in_a_chat(calling: Api, choice: Any) -> None:
    chosen = choice if isinstance(choice, str) else {"type": "function", "function": {"name": CALLED}}
    answer = await ask(calling, tools=[FUNCTION], tool_choice=choice)
    chat = await calling.chat(tools=[CHAT_FUNCTION], tool_choice=chosen)
    first, second = await logged(calling, answer), await logged(calling, chat)
    assert first.prompt == second.prompt
    assert first.unclean == second.unclean
    assert answer["tools"] == [FUNCTION | {"description": None}]
    assert answer["tool_choice"] == choice


async def test_a_shape_is_asked_for_as_in_a_chat(calling: Api) -> None:
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
    shape = {"type": "json_schema", "name": "weather", "schema": schema, "strict": True}
    answer = await ask(calling, text={"format": shape, "verbosity": "medium"})
    named = {"name": "weather", "schema": schema, "strict": True}
    chat = await calling.chat(response_format={"type": "json_schema", "json_schema": named})
    first, second = await logged(calling, answer), await logged(calling, chat)
    assert first.sampling.response_format == second.sampling.response_format is not None
    assert (text_of(answer), answer["text"]["format"]) == (REPLY, shape)
    await ask(calling, text={"format": {"type": "json_object"}})
    assert calling.engine.requests[-1].sampling.response_format == '{"type":"json_object"}'  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_a_text_streams_as_it_is_drawn_or_when_it_is_chosen(api: Api, model: str) -> None:
    whole = await ask(api, model=model)
    events = await stream(api, model=model)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    kinds = [*WHOLE, *TEXT_OPENED, *["response.output_text.delta"] * len(deltas), *TEXT, "response.completed"]
    assert [event["type"] for event in events] == kinds
    assert len(deltas) == (1 if model == "bonbon" else whole["usage"]["output_tokens"] - 1)  # the last token is the end
    assert "".join(deltas) == text_of(whole)
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert same(last, whole)
    assert last["output"] == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}
    assert first["id"] == last["id"]


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_an_answer_that_is_cut_off_is_incomplete(api: Api, model: str) -> None:
    whole = await ask(api, model=model, max_output_tokens=3, ignore_eos=True)
    events = await stream(api, model=model, max_output_tokens=3, ignore_eos=True)
    for answer in (whole, events[-1]["response"]):
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert (answer["output"][0]["status"], answer["completed_at"]) == ("incomplete", None)
    assert events[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_logprobs(api: Api, model: str) -> None:
    asked = {"model": model, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    chat = await api.chat(model=model, logprobs=True, top_logprobs=2)
    expected = chat["choices"][0]["logprobs"]["content"]
    whole = await ask(api, **asked)
    events = await stream(api, **asked)
    streamed = [e for event in events if event["type"] == "response.output_text.delta" for e in event["logprobs"]]
    for found in (whole["output"][0]["content"][0]["logprobs"], streamed):
        assert [entry | {"bytes": entry["bytes"] or None} for entry in found] == expected
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == streamed


@pytest.mark.parametrize("model", ["base", "bonbon"])
@pytest.mark.parametrize(("parallel", "count"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("text", ["", "One moment."])
async def test_calls_stream(tmp_path: Path, model: str, parallel: bool, count: int, text: str) -> None:
    async with open_api(tmp_path, engine=CallingEngine(calls=2, text=text)) as api:
        asked = {"model": model, "tools": [FUNCTION], "parallel_tool_calls": parallel}
        whole, events = await ask(api, **asked), await stream(api, **asked)
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert [item["arguments"] for item in calls] == ['{"id": 7}'] * count
    assert len({item["call_id"] for item in calls}) == count
    assert [item["type"] for item in whole["output"][: -len(calls)]] == (["message"] if text else [])
    assert same(events[-1]["response"], whole)
    for index, item in enumerate(events[-1]["response"]["output"]):
        if item["type"] == "function_call":
            own = [event for event in events if event.get("output_index") == index]
            deltas = [event["delta"] for event in own if event["type"] == "response.function_call_arguments.delta"]
            assert [event["type"] for event in own] == [
                "response.output_item.added",
                *["response.function_call_arguments.delta"] * len(deltas),
                "response.function_call_arguments.done",
                "response.output_item.done",
            ]
            assert own[0]["item"] == item | {"arguments": "", "status": "in_progress"}
            assert "".join(deltas) == own[-2]["arguments"] == item["arguments"]
            assert own[-1]["item"] == item


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"store": True}, "store"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"truncation": "auto"}, "truncation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"n": 2}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"user": "ada", "safety_identifier": "bob"}, "safety_identifier"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"max_output_tokens": 5000}, "max_output_tokens"),
    ({"input": "word " * 3000}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["Hello"]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": "x"}, {"type": "computer_call"}]}, "input[1].type"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [CALL | {"name": "no name"}]}, "input[0].name"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}]}, "input[0].summary"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [FUNCTION, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
    ({"tools": [FUNCTION]}, "tools"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"tools": [FUNCTION], "tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    *(
        ({"input": [{"role": "user", "content": [{"type": kind}]}]}, "input[0].content")
        for kind in ("input_image", "input_file", "input_audio")
    ),
]


async def test_what_is_not_supported_is_refused_by_name(api: Api) -> None:
    for fields, param in REFUSED:
        response = await post(api, **fields)
        assert (response.status_code, error_of(response)["param"]) == (400, param), response.text
    assert await api.groups() == 0


async def test_a_function_that_is_not_offered_cannot_be_demanded(calling: Api) -> None:
    tools = [{"type": "function", "name": "f"}]
    response = await post(calling, tools=tools, tool_choice={"type": "function", "name": "g"})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "tool_choice")
    assert error["message"] == "tool_choice names 'g', which tools do not have: name one of f"
    chat = await calling.post(
        CHAT,
        model="base",
        messages=MESSAGES,
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice={"type": "function", "function": {"name": "g"}},
    )
    assert error_of(chat) == error


def test_the_calls_of_a_message_are_put_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item used to copy the ones before it, which took 19 seconds for a body of the maximum size."""
    copies, copy = 0, ChatMessage.model_copy

    def counted(self: ChatMessage, **options: Any) -> ChatMessage:
        nonlocal copies
        copies += 1
        return copy(self, **options)

    monkeypatch.setattr(ChatMessage, "model_copy", counted)
    items = [InputCall(type="function_call", call_id="c", name="f", arguments="{}")] * 500
    (message,) = messages_of(items)
    assert len(message.tool_calls or ()) == len(items)
    assert copies == 1


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_what_json_cannot_hold_is_refused_by_name(calling: Api, stream: str) -> None:
    """Python accepts NaN and half a surrogate pair in JSON, but cannot write them into the answer."""
    deep = "[" * 880 + "]" * 880
    function = '"tools": [{"type": "function", "name": "f", %s}]'
    shape = '"text": {"format": {"type": "json_schema", "name": "x", %s}}'
    nested = '{"a": ' * 300 + "1" + "}" * 300
    fields = {
        function % f'"parameters": {nested}': "tools[0].parameters",
        shape % f'"schema": {nested}': "text.format.schema",
        function % r'"description": "\ud800"': "tools[0].description",
        function % '"parameters": {"a": NaN}': "tools[0].parameters",
        function % r'"parameters": {"\ud800": "x"}': "tools[0].parameters",
        shape % '"schema": {"a": NaN}': "text.format.schema",
        shape % r'"schema": {}, "description": "\ud800"': "text.format.description",
        r'"instructions": "\ud800"': "instructions",
        r'"input": "\ud800"': "input",
        r'"input": [{"type": "function_call_output", "call_id": "c", "output": "\ud800"}]': "input[0].output",
        f'"input": [{{"type": {deep}}}]': "input[0].type",
        f'"include": [{deep}]': "include[0]",
    }
    for field, param in fields.items():
        body = f'{{"model": "bonbon", "stream": {stream}, "input": "x", {field}}}'
        headers = {"content-type": "application/json"}
        response = await calling.client.post(RESPONSES, content=body.encode(), headers=headers)
        assert (response.status_code, error_of(response)["param"]) == (400, param), field[:80]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "background": False, "truncation": "disabled", "service_tier": "auto", "n": 1},
        {"include": ["reasoning.encrypted_content"], "max_tool_calls": 3, "prompt_cache_key": "x"},
        {"reasoning": {"effort": "none", "summary": "auto"}, "text": {"format": {"type": "text"}}},
        {"previous_response_id": None, "conversation": None, "prompt": None, "tools": [], "include": []},
        {"top_k": 5, "stop": ["never"], "logit_bias": {"3": 1}, "best_of": 3, "top_logprobs": 0},
    ],
)
async def test_what_asks_for_nothing_special_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    assert text_of(await ask(api, **fields))


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")],
)
async def test_no_response_can_be_had_again(api: Api, method: str, path: str) -> None:
    answer = await ask(api)
    response = await api.client.request(method, f"{RESPONSES}/{answer['id']}{path}")
    assert response.status_code == 404
    assert "not stored" in error_of(response)["message"]
    unknown = (await api.client.get("/v1/nothing")).json()["error"]["message"]
    assert "POST /v1/responses," in unknown
    assert "response_id" not in unknown


async def test_a_failing_reward_degrades_it(api: Api) -> None:
    api.reward.failure = "gone"
    answer = await ask(api)
    assert answer["bonbon"]["degraded"]
    assert (answer["status"], answer["bonbon"]["chosen"]) == ("completed", [0])


async def test_a_request_that_comes_again_gets_the_same_answer(api: Api) -> None:
    headers, asked = {"idempotency-key": "order-17"}, {"model": "bonbon", "input": QUESTION, "max_output_tokens": 12}
    first, again = [(await api.client.post(RESPONSES, json=asked, headers=headers)).json() for _ in range(2)]
    assert same(first, again)
    assert first["bonbon"]["group_id"] == again["bonbon"]["group_id"]
    streamed = read((await api.client.post(RESPONSES, json=asked | {"stream": True}, headers=headers)).text)
    assert same(streamed[-1]["response"], first)
    for fields in ({"input": "Another"}, {"instructions": "Be kind."}, {"max_output_tokens": 11}):
        refused = await api.client.post(RESPONSES, json=asked | fields, headers=headers)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "idempotency-key")
    assert await api.groups() == 1


async def test_what_fails_before_the_first_event_is_an_ordinary_status(api: Api) -> None:
    response = await post(api, stream=True, model="nobody")
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")
    api.engine.failure = "the accelerator is gone"
    assert (await post(api, stream=True)).status_code == 503


class FailingMidway(FakeEngine):
    """An engine that fails after the first token, or before the prompt is read."""

    def __init__(self, *, early: bool) -> None:
        super().__init__(delay=0.05 if early else 0.0)
        self.early = early

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        async for event in super().draw(replace(request, deltas=True)):
            if (self.early and isinstance(event, Delta)) or not self.early:
                yield event
            if isinstance(event, Delta):
                self.failure = "the accelerator is gone"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_a_failure_midway_ends_the_stream_with_a_failed_response(tmp_path: Path, model: str, early: bool) -> None:
    async with open_api(tmp_path, engine=FailingMidway(early=early), ping_interval=0.01) as api:
        response = await post(api, model=model, stream=True, ignore_eos=True)
        assert response.status_code == 200
        events = read(response.text)
        assert await api.groups() == 0
    assert [event["type"] for event in events[:2]] == WHOLE
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "the accelerator is gone"}
    said = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert [item["content"][0]["text"] for item in last["response"]["output"]] == (["".join(said)] if said else [])
    assert bool(said) == (model == "base" and not early)


async def test_it_is_measured_under_its_route(api: Api) -> None:
    await ask(api)
    await api.post(CHAT, model="base", messages=[{"role": "user", "content": "x"}])
    metrics = (await api.client.get("/metrics")).text
    assert 'bonbon_requests_total{route="/v1/responses",status="200"} 1.0' in metrics
    assert 'bonbon_answers_total{asked="alias",model_version="fake"} 1.0' in metrics
