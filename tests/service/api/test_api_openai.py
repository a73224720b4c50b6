"""The official openai client against a real server."""

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam, ChatCompletionUserMessageParam

from bonbon.engines.fake_engine import FakeEngine
from tests.support.service.api import MESSAGES, Server, longest, serve

CHAT_MESSAGES: list[ChatCompletionMessageParam] = [
    ChatCompletionUserMessageParam(role="user", content=str(message["content"])) for message in MESSAGES
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("data"), engine=FakeEngine(delay=0.001), api_key="secret") as running:
        running.reward.function = longest
        yield running


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="bonbon", messages=CHAT_MESSAGES)
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.model_extra is not None
    assert answer.model_extra["bonbon"]["n"] == 8
    assert answer.model_extra["bonbon"]["tokens_drawn"] > answer.usage.completion_tokens


def test_n_and_best_of_by_extra_body(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bonbon", messages=CHAT_MESSAGES, n=3, extra_body={"best_of": 5, "bonbon": {"candidates": True}}
    )
    assert answer.model_extra is not None
    extension = answer.model_extra["bonbon"]
    assert (len(answer.choices), extension["n"], len(extension["candidates"])) == (3, 5, 5)
    assert sorted(extension["rewards"], reverse=True) == extension["rewards"]


def test_a_streamed_chat(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="base", messages=CHAT_MESSAGES, seed=3)
    for model in ("base", "bonbon"):
        stream = client.chat.completions.create(
            model=model,
            messages=CHAT_MESSAGES,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert text == whole.choices[0].message.content or model == "bonbon"


def test_the_stream_helper_accumulates(client: OpenAI) -> None:
    with client.chat.completions.stream(model="bonbon", messages=CHAT_MESSAGES, n=2, seed=3) as stream:
        final = stream.get_final_completion()
    assert len(final.choices) == 2
    assert all(choice.message.content for choice in final.choices)


def test_logprobs(client: OpenAI) -> None:
    chat = client.chat.completions.create(model="base", messages=CHAT_MESSAGES, logprobs=True, top_logprobs=2, seed=3)
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 for token in chat.choices[0].logprobs.content)
    completion = client.completions.create(model="base", prompt="Dear", logprobs=1, seed=3)
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="bonbon", prompt=["One", "Two"], n=2, best_of=4, echo=True)
    assert isinstance(answer, Completion)
    assert [choice.text[:3] for choice in answer.choices] == ["One", "One", "Two", "Two"]


def test_streamed_completions(server: Server) -> None:
    # Not strict: the client's type has no null finish_reason, which OpenAI's own streams of completions have.
    with OpenAI(base_url=f"{server.url}/v1", api_key="secret") as client:
        chunks = list(client.completions.create(model="base", prompt=[1, 2, 3], stream=True, max_tokens=5, seed=3))
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_errors_are_the_client_s_own_classes(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="bonbon", messages=CHAT_MESSAGES, frequency_penalty=3)
    assert (refused.value.param, refused.value.code) == ("frequency_penalty", "invalid_value")
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=CHAT_MESSAGES, stream=True)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    server.engine.failure = "the accelerator is gone"
    try:
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="bonbon", messages=CHAT_MESSAGES)
    finally:
        server.engine.failure = None
    assert failed.value.status_code == 503


def test_a_failure_mid_stream_raises(client: OpenAI, server: Server) -> None:
    stream = client.chat.completions.create(model="base", messages=CHAT_MESSAGES, stream=True, seed=3)
    next(stream)
    server.engine.failure = "the accelerator is gone"
    try:
        with pytest.raises(openai.APIError, match="the accelerator is gone"):
            list(stream)
    finally:
        server.engine.failure = None


def test_models(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"bonbon", "champion", "base", "fake"}
    assert client.models.retrieve("bonbon").owned_by == "bonbon"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_the_raw_response_has_the_request_id(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="bonbon", messages=CHAT_MESSAGES, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    assert raw.parse()._request_id == "mine"


async def test_many_at_once(server: Server) -> None:
    import asyncio

    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model="bonbon", messages=CHAT_MESSAGES, seed=i) for i in range(40))
        )
    groups = {answer.model_extra["bonbon"]["group_id"] for answer in answers if answer.model_extra}
    assert len(groups) == 40
