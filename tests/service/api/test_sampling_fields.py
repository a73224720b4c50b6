"""top_k, min_p, penalties, logit_bias, ignore_eos and min_tokens over HTTP, on the embedded and the fake engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bonbon.pairs.reading.reader import pairs
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, Api, events, open_api
from tests.support.service.embedded_api import EmbeddedApi, embedded_api, logged

END = 2
FIELDS: list[dict[str, Any]] = [
    {"top_k": 2},
    {"min_p": 0.3},
    {"repetition_penalty": 1.5},
    {"frequency_penalty": 2},
    {"presence_penalty": -1.5},
    {"logit_bias": {"5": 3}},
    {"ignore_eos": True},
    {"min_tokens": 3},
]


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path) as running:
        yield running


@pytest.fixture
async def tiny(tmp_path: Path) -> AsyncIterator[EmbeddedApi]:
    async with embedded_api(tmp_path) as running:
        yield running


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: next(iter(field)))
async def test_the_fake_engine_draws_with_each_field_and_no_group_of_it_is_trained_on(
    fake: Api, field: dict[str, Any]
) -> None:
    plain = await fake.chat(max_tokens=12)
    answer = await fake.chat(max_tokens=12, bonbon={"candidates": True}, **field)
    again = await fake.chat(max_tokens=12, **field)
    assert answer["choices"] == again["choices"]
    assert answer["bonbon"]["n"] == 8
    group, clean = await logged(fake.state, answer), await logged(fake.state, plain)
    assert (group["unclean"], clean["unclean"]) == ("sampling", None)
    assert clean["other_sampling"] is None
    assert group["other_sampling"] == (None if "top_k" in field else field)
    assert group["top_k"] == field.get("top_k", 0)
    drawn = [candidate["token_ids"] for candidate in group["candidates"]]
    assert drawn != [candidate["token_ids"] for candidate in clean["candidates"]]
    assert [pair.group_id async for pair in pairs(fake.state.database, version=None)] == [clean["id"]]
    stored = await fake.state.pair_log.group(group["id"])
    assert stored is not None
    assert not stored.sampling.unmodified


async def test_the_fake_engine_keeps_to_lengths_and_limits(fake: Api) -> None:
    """The fake engine knows thirteen tokens; the last one ends an answer."""
    long = await fake.chat(max_tokens=10, min_tokens=10, best_of=16, bonbon={"candidates": True})
    assert {candidate["tokens"] for candidate in long["bonbon"]["candidates"]} == {10}
    on = await fake.chat(max_tokens=20, ignore_eos=True, logit_bias={"12": 5}, bonbon={"candidates": True})
    assert {candidate["tokens"] for candidate in on["bonbon"]["candidates"]} == {20}
    once = await fake.chat(max_tokens=12, min_tokens=12, presence_penalty=2, temperature=0.01)
    assert len(set(once["choices"][0]["message"]["content"].split())) == 12
    only = await fake.complete(max_tokens=6, min_tokens=6, logit_bias={"3": 100}, temperature=0)
    assert only["choices"][0]["text"] == " ".join(["order"] * 6)
    late = await fake.complete(max_tokens=9, logit_bias={"3": 100}, stop=" order", min_tokens=4)
    assert late["choices"][0]["text"] == " ".join(["order"] * 4)


async def test_a_refused_pair_of_fields_is_named(fake: Api) -> None:
    shape: dict[str, Any] = {"response_format": {"type": "json_object"}}
    assert (await fake.refusal(**shape, ignore_eos=True))["param"] == "ignore_eos"
    assert (await fake.refusal(**shape, min_tokens=2))["param"] == "min_tokens"
    assert (await fake.refusal(max_tokens=4, min_tokens=5))["param"] == "min_tokens"
    error = await fake.refusal(COMPLETIONS, logit_bias={"5": 200})
    assert error["param"] == "logit_bias"


async def test_a_default_length_that_the_context_shortens_shortens_min_tokens_with_it(tiny: EmbeddedApi) -> None:
    context = (await tiny.client.get("/v1/models/base")).json()["max_model_len"]
    prompt = [300] * (context - 5)
    answer = await tiny.complete(prompt=prompt, min_tokens=50)
    assert answer["usage"]["completion_tokens"] == 5


async def test_biases_and_lengths_on_a_real_model(tiny: EmbeddedApi) -> None:
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    plain = await tiny.chat(**greedy)
    likeliest = plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    vocabulary = (await tiny.post("/tokenize", prompt=likeliest[1]["token"]))["tokens"]
    assert len(vocabulary) == 1
    second = await tiny.chat(**greedy, logit_bias={str(vocabulary[0]): 50})
    first_token = second["choices"][0]["logprobs"]["content"][0]
    # The token is the biased one, and its log-probability is the policy's own.
    assert first_token["token"] == likeliest[1]["token"]
    assert first_token["logprob"] == pytest.approx(likeliest[1]["logprob"], abs=1e-4)
    assert first_token["top_logprobs"][0]["token"] == likeliest[0]["token"]

    ended = await tiny.chat(max_tokens=8, logit_bias={END: 100})
    assert ended["usage"]["completion_tokens"] == 1
    later = await tiny.chat(max_tokens=8, logit_bias={END: 100}, min_tokens=5)
    assert later["usage"]["completion_tokens"] == 6
    assert later["choices"][0]["finish_reason"] == "stop"
    on = await tiny.chat(max_tokens=8, logit_bias={END: 100}, ignore_eos=True)
    assert (on["usage"]["completion_tokens"], on["choices"][0]["finish_reason"]) == (8, "length")
    assert on["choices"][0]["message"]["content"] == ""  # the tokens that end an answer have no text

    refused = await tiny.post(CHAT, 400, model="base", messages=MESSAGES, logit_bias={"1024": 1})
    assert refused["error"]["param"] == "logit_bias"


async def test_penalties_on_a_real_model(tiny: EmbeddedApi) -> None:
    async def tokens(**fields: Any) -> list[int]:
        answer = await tiny.complete(max_tokens=40, ignore_eos=True, seed=7, **fields)
        group = await tiny.group(answer)
        return list(group["candidates"][0]["token_ids"])

    plain = await tokens(temperature=0)
    assert len(set(plain)) < 40
    no_repeats = await tokens(temperature=0, presence_penalty=2, frequency_penalty=2, repetition_penalty=10)
    assert len(set(no_repeats)) > len(set(plain))
    assert len(set(await tokens(temperature=0, frequency_penalty=-2))) < len(set(plain))
    # top_k 1 and min_p 1 leave the likeliest token alone: what greedy search takes.
    assert await tokens(top_k=1) == plain
    assert await tokens(min_p=1) == plain


async def test_best_of_n_streams_seeds_and_neighbours(tiny: EmbeddedApi) -> None:
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "min_p": 0.05}
    asked: dict[str, Any] = {"max_tokens": 24, "seed": 5, **penalties}
    plain: dict[str, Any] = {"max_tokens": 24, "seed": 6}
    best = await tiny.chat(model="bonbon", **asked)
    alone = await tiny.chat(**plain)
    group = await tiny.group(best)
    assert (len(group["candidates"]), group["unclean"]) == (8, "sampling")
    assert group["other_sampling"] == penalties
    # In one batch with rows that ask for something else, the same seed draws the same.
    together = await asyncio.gather(
        tiny.chat(model="bonbon", **asked),
        tiny.chat(**plain),
        tiny.chat("Hello", max_tokens=24, logit_bias={"5": 3}, best_of=4),
        tiny.chat("Hello", max_tokens=24, min_tokens=24, top_k=3, best_of=4),
    )
    assert together[0]["choices"] == best["choices"]
    assert together[1]["choices"] == alone["choices"]
    for model in ("base", "bonbon"):
        whole = await tiny.chat(model=model, **asked)
        body = {"model": model, "messages": MESSAGES, "stream": True, **asked}
        chunks, _ = events((await tiny.client.post(CHAT, json=body)).text)
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text == whole["choices"][0]["message"]["content"]
