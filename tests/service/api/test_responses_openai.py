"""The official openai client's Responses API against a real server, every reply checked against its types."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.responses import FunctionToolParam, Response, ResponseFunctionToolCall, ResponseInputParam
from pydantic import BaseModel

from tests.support.service.api import Server, longest, serve
from tests.support.service.calling_engine import CALLED, CallingEngine

QUESTION = "Where is my order?"
TOOL = FunctionToolParam(type="function", name=CALLED, parameters={"type": "object", "properties": {}}, strict=False)


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("data"), engine=CallingEngine(delay=0.001), api_key="secret") as running:
        running.reward.function = longest
        yield running


def test_a_response(client: OpenAI) -> None:
    answer = client.responses.create(
        model="bonbon", input=QUESTION, instructions="Be kind.", extra_body={"best_of": 5, "seed": 3}
    )
    assert isinstance(answer, Response)
    assert answer.output_text
    assert (answer.status, answer.instructions) == ("completed", "Be kind.")
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert answer.model_extra is not None
    assert answer.model_extra["bonbon"]["n"] == 5


@pytest.mark.parametrize("model", ["base", "bonbon"])
def test_streams(client: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "input": QUESTION, "extra_body": {"seed": 3}}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == whole.output_text


@pytest.mark.parametrize("model", ["base", "bonbon"])
def test_a_conversation_with_a_call(client: OpenAI, model: str) -> None:
    conversation: ResponseInputParam = [{"role": "user", "content": QUESTION}]
    with client.responses.stream(model=model, input=conversation, tools=[TOOL]) as stream:
        first = stream.get_final_response()
    [call] = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments) == (CALLED, '{"id": 7}')
    conversation += [item.to_dict() for item in first.output]  # type: ignore[misc]
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": "shipped"})
    assert client.responses.create(model=model, input=conversation, tools=[TOOL]).output_text


def test_what_is_parsed(client: OpenAI) -> None:
    parsed = client.responses.parse(model="bonbon", input=QUESTION, text_format=Weather)
    assert parsed.output_parsed == Weather(city="Paris", degrees=21)
    with client.responses.stream(model="base", input=QUESTION, text_format=Weather) as stream:
        assert stream.get_final_response().output_parsed == Weather(city="Paris", degrees=21)

    class Order(BaseModel):
        id: int

    tool: Any = pydantic_function_tool(Order, name=CALLED)
    called = client.responses.parse(model="bonbon", input=QUESTION, tools=[tool])
    [call] = called.output
    assert call.type == "function_call"
    assert call.parsed_arguments == Order(id=7)


def test_logprobs(client: OpenAI) -> None:
    answer = client.responses.create(
        model="base", input=QUESTION, include=["message.output_text.logprobs"], top_logprobs=2, extra_body={"seed": 3}
    )
    assert answer.output[0].type == "message"
    part = answer.output[0].content[0]
    assert part.type == "output_text"
    assert part.logprobs
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


def test_a_cut_off_answer(client: OpenAI) -> None:
    answer = client.responses.create(
        model="bonbon", input=QUESTION, max_output_tokens=2, extra_body={"ignore_eos": True}
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_errors_are_the_client_s_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="bonbon", input=QUESTION, tools=[{"type": "web_search"}])
    assert (refused.value.param, refused.value.code) == ("tools[0].type", "invalid_value")
    with pytest.raises(openai.BadRequestError) as unstored:
        client.responses.create(model="bonbon", input=QUESTION, previous_response_id="resp_1")
    assert unstored.value.param == "previous_response_id"
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="not stored"):
            ask("resp_1")
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.input_items.list("resp_1")
    with pytest.raises(openai.NotFoundError, match="POST /tokenize to count"):
        client.responses.input_tokens.count(model="bonbon", input=QUESTION)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="nobody", input=QUESTION, stream=True)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").responses.create(model="bonbon", input=QUESTION)


def test_a_failure_midway_is_a_failed_response(client: OpenAI, server: Server) -> None:
    stream = client.responses.create(model="base", input=QUESTION, stream=True, extra_body={"ignore_eos": True})
    assert next(stream).type == "response.created"
    server.engine.failure = "the accelerator is gone"
    try:
        last = list(stream)[-1]
    finally:
        server.engine.failure = None
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "the accelerator is gone"
