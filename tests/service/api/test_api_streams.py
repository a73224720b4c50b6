"""Streams: token by token for one candidate; comments, then the chosen text, for best-of-n."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.engines.fake_engine import FakeEngine
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import digest_score
from service.schemas.replies import ChatChunk, CompletionChunk, ErrorEnvelope
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, Api, count_groups, error_of, events, open_api, serve
from tests.support.until import until


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path) as running:
        yield running


async def stream(api: Api, path: str = CHAT, **body: Any) -> tuple[list[dict[str, Any]], list[str]]:
    asked = {"messages": MESSAGES} if path == CHAT else {"prompt": "Dear customer"}
    response = await api.post(path, **{"model": "bonbon", "stream": True, "seed": 1, **asked, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "x-request-id" in response.headers
    chunks, comments = events(response.text)
    for chunk in chunks:
        (ChatChunk if path == CHAT else CompletionChunk).model_validate(chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    return chunks, comments


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)


async def test_one_draw_streams_token_by_token(api: Api) -> None:
    whole = await api.chat(model="base")
    chunks, comments = await stream(api, model="base")
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert len(chunks) == whole["usage"]["completion_tokens"] + 1  # role, words (the last token is the end), finish
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["bonbon"]["tokens_drawn"] == whole["usage"]["completion_tokens"]
    assert all("bonbon" not in chunk and "usage" not in chunk for chunk in chunks[:-1])
    assert comments == []


async def test_best_of_n_streams_the_chosen_text(api: Api) -> None:
    whole = await api.chat(n=2)
    chunks, comments = await stream(api, n=2)
    assert comments == [": generating 8 candidates"]
    assert [len(chunk["choices"]) for chunk in chunks] == [1] * 6
    for index in (0, 1):
        assert text_of(chunks, index) == whole["choices"][index]["message"]["content"]
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant", None, None] * 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"] * 2
    assert chunks[-1]["bonbon"]["rewards"] == whole["bonbon"]["rewards"]


@pytest.mark.parametrize("model", ["base", "bonbon"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_usage_comes_last_and_without_choices(api: Api, path: str, model: str) -> None:
    chunks, _ = await stream(api, path, model=model, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > usage["prompt_tokens"] > 0
    assert "bonbon" in chunks[-2]


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_streamed_logprobs_are_those_of_the_whole_answer(api: Api, model: str) -> None:
    whole = await api.chat(model=model, logprobs=True, top_logprobs=1)
    chunks, _ = await stream(api, model=model, logprobs=True, top_logprobs=1)
    choices = [chunk["choices"][0] for chunk in chunks]
    content = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert content == whole["choices"][0]["logprobs"]["content"]
    whole = await api.complete(model=model, logprobs=1)
    chunks, _ = await stream(api, COMPLETIONS, model=model, logprobs=1)
    offsets = [o for chunk in chunks if (found := chunk["choices"][0]["logprobs"]) for o in found["text_offset"]]
    assert offsets == whole["choices"][0]["logprobs"]["text_offset"]


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_several_prompts_stream_side_by_side(api: Api, model: str) -> None:
    body = {"model": model, "prompt": ["one", "two"], "echo": True}
    whole = await api.complete(**body)
    chunks, _ = await stream(api, COMPLETIONS, **body)
    assert [text_of(chunks, i) for i in (0, 1)] == [choice["text"] for choice in whole["choices"]]
    assert [len(chunk.get("bonbon", {}).get("groups", [])) for chunk in chunks] == [0] * (len(chunks) - 1) + [2]
    finished = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1]


async def test_comments_keep_a_quiet_stream_open(tmp_path: Path) -> None:
    async with open_api(tmp_path, engine=FakeEngine(delay=0.02), ping_interval=0.05) as api:
        _, comments = await stream(api, max_tokens=15)
        assert 3 <= len(comments) <= 8
        assert set(comments) == {": generating 8 candidates"}


async def test_what_fails_before_the_first_byte_is_an_ordinary_status(api: Api) -> None:
    for body, status, code in (
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "base", "max_tokens": 5000}, 400, "context_length_exceeded"),
        ({"model": "bonbon", "max_tokens": 5000}, 400, "context_length_exceeded"),
        ({"model": "bonbon", "best_of": 99}, 400, "invalid_value"),
    ):
        assert (await api.refusal(status=status, stream=True, **body))["code"] == code
    api.engine.failure = "the accelerator is gone"
    for model in ("base", "bonbon"):
        error = await api.refusal(status=503, stream=True, model=model)
        assert (error["message"], error["type"]) == ("the accelerator is gone", "server_error")


async def test_one_prompt_too_long_among_several_is_an_ordinary_status(api: Api) -> None:
    prompts = ["short", "long " * 2000]
    error = await api.refusal(COMPLETIONS, stream=True, prompt=prompts, model="base", max_tokens=100)
    assert error["code"] == "context_length_exceeded"
    assert api.engine.running == 0


class FailingMidway(FakeEngine):
    """An engine that fails after `tokens` tokens."""

    tokens = 2

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        async for event in super().draw(replace(request, deltas=True)):
            yield event
            self.tokens -= isinstance(event, Delta)
            if self.tokens == 0:
                self.failure = "the accelerator is gone"


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_a_failure_mid_stream_is_an_error_event(tmp_path: Path, model: str) -> None:
    async with open_api(tmp_path, engine=FailingMidway()) as api:
        engine = api.engine
        response = await api.post(CHAT, model=model, messages=MESSAGES, stream=True, seed=1)
        assert response.status_code == 200
        last = response.text.removesuffix("\n\n").split("\n\n")[-1]
        envelope = ErrorEnvelope.model_validate(json.loads(last.removeprefix("data: ")))
        assert envelope.error.message == "the accelerator is gone"
        assert "[DONE]" not in response.text
        assert '"finish_reason":"' not in response.text
        assert await api.groups() == 0
        assert (engine.running, api.state.router.in_flight) == (0, 0)


async def test_a_stream_whose_group_cannot_be_logged_never_ends_well(api: Api) -> None:
    await api.state.pair_log.stop()
    response = await api.post(CHAT, model="base", messages=MESSAGES, stream=True)
    assert '"finish_reason":"' not in response.text
    assert "[DONE]" not in response.text
    error = json.loads(response.text.removesuffix("\n\n").split("data: ")[-1])["error"]
    assert error["message"] == "the answer cannot be logged at the moment; try again"


async def test_the_log_failing_at_once_is_a_503_with_retry_after(api: Api) -> None:
    await api.state.pair_log.stop()
    response = await api.post(CHAT, model="bonbon", messages=MESSAGES)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert error_of(response)["type"] == "server_error"


@pytest.mark.parametrize("model", ["base", "bonbon"])
def test_a_group_is_durable_before_its_final_chunk_is_sent(tmp_path: Path, model: str) -> None:
    body = {"model": model, "messages": MESSAGES, "stream": True, "max_tokens": 5}
    with (
        serve(tmp_path, engine=FakeEngine(delay=0.005)) as server,
        httpx2.stream("POST", server.url + CHAT, json=body) as response,
    ):
        finished = 0
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                if "bonbon" in chunk:
                    finished += count_groups(tmp_path, chunk["bonbon"]["group_id"])
        assert finished == 1


def test_the_first_token_leaves_while_the_rest_is_drawn(tmp_path: Path) -> None:
    engine = FakeEngine(delay=0.05)
    body = {"model": "base", "messages": MESSAGES, "stream": True, "seed": 1}
    with serve(tmp_path, engine=engine) as server, httpx2.stream("POST", server.url + CHAT, json=body) as response:
        lines = response.iter_lines()
        first = next(line for line in lines if '"content":"' in line and '"role"' not in line)
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"]
        assert engine.running == 1


@pytest.mark.parametrize("model", ["base", "bonbon"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_disconnects_aborts_every_draw(tmp_path: Path, model: str, streaming: bool) -> None:
    engine = FakeEngine(delay=0.4)  # the draws would take minutes
    body = {"model": model, "messages": MESSAGES, "stream": streaming, "max_tokens": 500, "seed": 1}
    with serve(tmp_path, engine=engine) as server:
        await hang_up(server.url, body, when=lambda: engine.running == (1 if model == "base" else 8))
        await until(lambda: engine.running == 0)
        await until(lambda: server.app.state.bonbon.router.in_flight == 0)
    assert count_groups(tmp_path) == 0


async def hang_up(url: str, body: dict[str, Any], when: Callable[[], bool]) -> None:
    async with httpx2.AsyncClient(timeout=None) as client:
        asking = asyncio.create_task(client.post(url + CHAT, json=body))
        await until(when)
        assert not asking.done()
        asking.cancel()
        await asyncio.wait([asking])


async def test_a_client_that_disconnects_while_the_reward_scores_leaves_no_group(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        scoring = threading.Event()

        def score(prompt: Prompt, completion: str) -> float:
            scoring.set()
            return digest_score(prompt, completion)

        server.reward.function, server.reward.delay = score, 5.0
        await hang_up(server.url, {"model": "bonbon", "messages": MESSAGES}, when=lambda: len(server.reward.calls) == 1)
        await until(lambda: server.app.state.bonbon.router.in_flight == 0)
        assert not scoring.is_set()
    assert count_groups(tmp_path) == 0
