"""Tests the reward on vLLM's pooling runner, with a server that counts characters."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from bonbon.errors import RewardError, UserError
from bonbon.http.circuit_breaker import BreakerState
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.remote.vllm_pooling import VllmReward
from bonbon.settings import RewardSpec
from tests.support.servers.scripted_server import serving

PROMPT = Prompt.user("Where is my order?")
BOS, LENGTH = 1, 40


class Scorer:
    """Serves vLLM's /v1/models, /tokenize and /classify; each character is a token, and the last one is the score."""

    def __init__(self, labels: int = 1, adds_bos: bool = False) -> None:
        self.labels, self.adds_bos = labels, adds_bos
        self.cards: list[dict[str, Any]] = [{"id": "judge", "root": "/models/judge", "max_model_len": LENGTH}]
        self.classified: list[list[int]] = []

    def __call__(self, body: dict[str, Any]) -> Response:
        if not body:
            return JSONResponse({"object": "list", "data": self.cards})
        if "use_activation" not in body:
            return JSONResponse({"tokens": self.tokens(body), "count": 0, "max_model_len": LENGTH})
        assert body["use_activation"] is False
        whole = [{"input": one} for one in body["input"]] if "input" in body else [body]
        assert len(whole) > 0
        texts = [self.tokens({"prompt": one["input"]} if isinstance(one.get("input"), str) else one) for one in whole]
        if max(map(len, texts)) > LENGTH:
            message = f"This model's maximum context length is {LENGTH} tokens."
            return JSONResponse({"error": {"message": message, "code": 400}}, 400)
        self.classified += texts
        return JSONResponse(
            {
                "data": [
                    {"index": at, "probs": [float(ids[-1]) + i for i in range(self.labels)]}
                    for at, ids in enumerate(texts)
                ]
            }
        )

    def tokens(self, body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            return [BOS, *map(ord, "|".join(message["content"] for message in body["messages"]))]
        if "prompt" in body:
            return [BOS] * self.adds_bos + [ord(letter) for letter in body["prompt"]]
        ids: list[int] = body["input"]
        return ids


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[VllmReward]:
    reward = build_reward(RewardSpec(kind="vllm", target=url, **options))
    assert isinstance(reward, VllmReward)
    await reward.start()
    try:
        yield reward
    finally:
        await reward.stop()


async def test_scores_prompt_and_completion() -> None:
    scorer = Scorer()
    with serving(scorer) as server:
        async with started(f"{server.root}/v1/") as reward:
            assert reward.version == "not asked yet"
            assert await reward.score(PROMPT, ["a", "bc"]) == [97, 99]
            assert await reward.score(Prompt(text="Dear "), ["x", "y"]) == [120, 121]
            assert reward.version.startswith("judge@")
        chat, text = server.requests[-2], server.requests[-1]
    assert server.paths == ["/v1/models", "/classify", "/classify", "/classify"]
    assert chat["model"] == "judge"
    assert chat["messages"][0] == {"role": "user", "content": "Where is my order?"}
    assert text["input"] == ["Dear x", "Dear y"]


async def test_what_is_too_long_is_cut_from_the_start_as_the_classifier_cuts_it() -> None:
    completion = "the end"
    for adds_bos, prompt in (
        (False, Prompt.user("x" * 100)),
        (True, Prompt(text="x" * 100)),
        (False, Prompt(text="x" * 100)),
    ):
        scorer = Scorer(adds_bos=adds_bos)
        with serving(scorer) as server:
            async with started(server.root) as reward:
                assert await reward.score(prompt, [completion]) == [ord("d")]
                assert reward.truncated == 1
            async with started(server.root, max_length=16) as reward:
                await reward.score(prompt, [completion])
        long, short = scorer.classified
        opening = [] if prompt.text and not adds_bos else [BOS]
        assert (len(long), len(short)) == (LENGTH, 16)
        assert long[: len(opening)] == opening
        assert "".join(map(chr, long[len(opening) :])).endswith(completion)
        assert BOS not in long[len(opening) :]


async def test_one_label_of_several() -> None:
    with serving(Scorer(labels=3)) as server:
        async with started(server.root, label=2, output="logprob") as reward:
            total = math.log(sum(math.exp(i) for i in range(3)))
            assert await reward.score(PROMPT, ["a"]) == [pytest.approx(2 - total)]
        async with started(server.root, label=2, output="logit") as reward:
            assert await reward.score(PROMPT, ["a"]) == [99]
        for label in (None, 3):
            async with started(server.root, label=label) as reward:
                with pytest.raises(RewardError, match="3 labels: set label to one of 0 to 2"):
                    await reward.score(PROMPT, ["a"])
        async with started(server.root, label=1) as reward:
            with pytest.raises(RewardError, match="3 labels: set output to 'logit' when"):
                await reward.score(PROMPT, ["a"])


async def test_version_is_the_model_and_how_it_is_read() -> None:
    scorer = Scorer()
    with serving(scorer) as server:

        async def version(**options: Any) -> str:
            async with started(server.root, **options) as reward:
                await reward.score(PROMPT, ["a"])
                return reward.version

        assert await version() == await version(timeout=9)
        versions = {await version(), await version(version="2"), await version(max_length=30), await version(label=0)}
        scorer.cards[0]["root"] = "/models/other"
        assert len(versions | {await version()}) == 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (JSONResponse({"data": []}), "serves no model: set the reward's model"),
        (JSONResponse({"data": [{"id": "a", "max_model_len": 9}, {"id": "b", "max_model_len": 9}]}), "serves a, b"),
        (JSONResponse({"data": [{"id": "a"}]}), r"returned an invalid answer: data\.0\.max_model_len"),
        (JSONResponse({"detail": "not found"}, 404), "answered 404"),
    ],
)
async def test_a_server_that_is_no_reward_model_is_named(answer: Response, message: str) -> None:
    with serving(answer) as server:
        async with started(server.root) as reward:
            with pytest.raises(RewardError, match=message):
                await reward.score(PROMPT, ["a"])


@pytest.mark.parametrize(
    ("probs", "message"),
    [([], r"data\.0\.probs"), ([None], r"data\.0\.probs\.0"), ([1e999], "not finite")],
)
async def test_a_score_that_is_none_is_refused(probs: list[Any], message: str) -> None:
    scorer = Scorer()
    body = f'{{"data": [{{"index": 0, "probs": {str(probs).replace("None", "null").replace("inf", "1e999")}}}]}}'
    with serving(scorer, Response(body, media_type="application/json")) as server:
        async with started(server.root) as reward:
            with pytest.raises(RewardError, match=message):
                await reward.score(PROMPT, ["a"])


async def test_a_dead_server_opens_the_breaker() -> None:
    with serving(JSONResponse({}, 503)) as server:
        async with started(server.root, attempts=1, breaker_failures=1) as reward:
            with pytest.raises(RewardError, match="503"):
                await reward.score(PROMPT, ["a", "b"])
            assert reward.client.breaker.state is BreakerState.OPEN
            with pytest.raises(RewardError, match="failed too often"):
                await reward.score(PROMPT, ["a"])


async def test_token_ids_and_bad_options_are_errors() -> None:
    async with started("http://127.0.0.1:9") as reward:
        with pytest.raises(RewardError, match="token ids of another tokenizer"):
            await reward.score(Prompt(token_ids=(1, 2)), ["a"])
    with pytest.raises(UserError, match="label = -1"):
        build_reward(RewardSpec(kind="vllm", target="http://127.0.0.1:9", label=-1))
