"""A repeated request gets the same answer and is logged once."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.engines.fake_engine import FakeEngine
from bonbon.store.tables import groups
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, Api, error_of, events, open_api

KEY = {"idempotency-key": "order-17"}
ASKED: dict[str, Any] = {"model": "bonbon", "messages": MESSAGES, "max_tokens": 12}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path, engine=FakeEngine(delay=0.001)) as opened:
        yield opened


async def ask(api: Api, path: str = CHAT, headers: dict[str, str] = KEY, **fields: Any) -> httpx2.Response:
    body = ASKED | fields if path == CHAT else {"model": "bonbon", "max_tokens": 12} | fields
    return await api.client.post(path, json=body, headers=headers)


def told(response: httpx2.Response) -> Any:
    """Returns what identifies an answer: its choices and the `bonbon` object."""
    assert response.status_code == 200, response.text
    return response.json()["choices"], response.json()["bonbon"]


def streamed(response: httpx2.Response) -> tuple[str, Any]:
    chunks, _ = events(response.text)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    return text, chunks[-1]["bonbon"]


@pytest.mark.parametrize("model", ["bonbon", "base"])
async def test_the_same_request_again_gets_the_same_answer(api: Api, model: str) -> None:
    first, again = [await ask(api, model=model) for _ in range(2)]
    assert told(again) == told(first)
    assert await api.groups() == 1
    other = await ask(api, model=model, headers={"idempotency-key": "order-18"})
    assert told(other)[1]["group_id"] != told(first)[1]["group_id"]


@pytest.mark.parametrize("model", ["bonbon", "base"])
async def test_whether_it_streams_or_not(api: Api, model: str) -> None:
    choices, extension = told(await ask(api, model=model))
    for _ in range(2):
        text, streamed_extension = streamed(await ask(api, model=model, stream=True))
        assert (text, streamed_extension) == (choices[0]["message"]["content"], extension)
    assert await api.groups() == 1


async def test_each_prompt_of_several_is_repeated(api: Api) -> None:
    prompts = ["Dear customer", "Hello", "Dear customer"]
    first, again = [await ask(api, COMPLETIONS, prompt=prompts, n=2, echo=True) for _ in range(2)]
    assert told(again) == told(first)
    assert all(choice["text"].startswith(prompts[index // 2]) for index, choice in enumerate(told(again)[0]))
    assert await api.groups() == 3


async def test_attempts_that_overlap_are_one_request(api: Api) -> None:
    """The client stopped waiting while its first attempt was still running."""
    answers = await asyncio.gather(*(ask(api) for _ in range(6)))
    assert len({json.dumps(told(answer)) for answer in answers}) == 1
    assert await api.groups() == 1


class Overlapping(FakeEngine):
    """An engine that generates nothing until three requests are being answered."""

    def __init__(self) -> None:
        super().__init__()
        self.three = asyncio.Barrier(3)

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        async for event in super().draw(request):
            yield event
            if isinstance(event, Started):
                await asyncio.wait_for(self.three.wait(), 30)


async def test_streams_that_overlap_are_all_kept_and_one_is_trained_on(tmp_path: Path) -> None:
    """Each client has received most of its answer before another answer is logged, so none can be withdrawn."""
    async with open_api(tmp_path, engine=Overlapping()) as api:
        answers = await asyncio.gather(*(ask(api, model="base", stream=True) for _ in range(3)))
        for text, extension in map(streamed, answers):
            group = await api.state.pair_log.group(extension["group_id"])
            assert group is not None
            assert group.served[0].text == text
        assert await api.groups() == 3


async def test_a_key_that_comes_with_another_request_is_refused(api: Api) -> None:
    """A request that differs in any field must not get the first answer."""
    first = await ask(api)
    others: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Another one"}]},
        {"model": "base"},
        {"n": 2},
        {"best_of": 2},
        {"max_tokens": 11},
        {"max_tokens": None},
        {"max_completion_tokens": 12},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 5},
        {"logit_bias": {"3": 1}},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"stop": ["."]},
        {"seed": 5},
        {"user": "somebody"},
        {"safety_identifier": "somebody"},
        {"metadata": {"team": "support"}},
        {"response_format": {"type": "json_object"}},
        {"bonbon": {"candidates": True}},
        {"stream": True, "seed": 5},
        {"stream": True, "model": "base"},
    ]
    for fields in others:
        refused = await ask(api, **fields)
        assert refused.status_code == 400, fields
        assert error_of(refused)["param"] == "idempotency-key", fields
    assert told(await ask(api)) == told(first)
    assert await api.groups() == 1


async def test_a_key_that_comes_with_another_list_of_prompts_is_refused(api: Api) -> None:
    await ask(api, COMPLETIONS, prompt=["one", "two"])
    for prompt in (["one"], "one", ["one", "two", "three"], ["one", "three"], ["two", "one"]):
        refused = await ask(api, COMPLETIONS, prompt=prompt)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "idempotency-key"), prompt
    assert (await ask(api, COMPLETIONS, prompt=["one", "two"], echo=True)).status_code == 400
    assert (await ask(api, COMPLETIONS, prompt=["one", "two"])).status_code == 200
    assert await api.groups() == 2


async def test_of_different_requests_with_one_key_at_a_time_one_is_answered(api: Api) -> None:
    answers = await asyncio.gather(*(ask(api, max_tokens=4 + number) for number in range(6)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 400, 400, 400, 400, 400]
    assert await api.groups() == 1


async def test_an_answer_of_an_earlier_release_is_told_by_its_prompt(api: Api) -> None:
    first = await ask(api)
    async with api.state.database.write() as connection:
        await connection.execute(update(groups).values(fingerprint=None))
    assert told(await ask(api)) == told(first)
    assert (await ask(api, messages=[{"role": "user", "content": "Another one"}])).status_code == 400


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"idempotency-key": ""}, {}),
        ({"idempotency-key": "x" * 256}, {}),
        ({"idempotency-key": "tab\there"}, {}),
        (KEY, {"logprobs": True}),
    ],
)
async def test_a_key_that_cannot_be_honoured_is_refused(
    api: Api, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    refused = await ask(api, headers=headers, **fields)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "idempotency-key")


async def test_what_is_not_stored_is_not_repeated(api: Api) -> None:
    answers = [told(await ask(api, store=False)) for _ in range(2)]
    assert answers[0] != answers[1]
    assert await api.groups() == 0


async def test_a_retry_without_a_key_is_not_trained_on_beside_its_first_attempt(api: Api) -> None:
    """OpenAI's clients number their attempts but send no key."""
    retry = {"x-stainless-retry-count": "1"}
    unclean = []
    for headers, text in (({}, "one"), (retry, "one"), (retry, "two"), ({}, "one")):
        response = await ask(api, headers=headers, messages=[{"role": "user", "content": text}])
        group = await api.state.pair_log.group(told(response)[1]["group_id"])
        assert group is not None
        unclean.append(group.unclean)
    assert unclean == [None, "repeated", None, None]


async def test_a_degraded_retry_cannot_become_clean_beside_its_first_attempt(api: Api) -> None:
    """Scoring groups again makes degraded ones clean, but leaves repeated ones alone."""
    assert (await ask(api, headers={})).status_code == 200
    api.reward.failure = "down"
    response = await ask(api, headers={"x-stainless-retry-count": "1"})
    group = await api.state.pair_log.group(told(response)[1]["group_id"])
    assert group is not None
    assert group.degraded is not None
    assert group.unclean == "repeated"
