"""`/tokenize` and `/detokenize`, compatible with vLLM's server."""

from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI

from bonbon.settings import Limits
from service.limits.rate_limits import RateLimits
from tests.support.service.api import COMPLETIONS, MESSAGES, error_of, open_api
from tests.support.service.embedded_api import embedded_api


def limit(app: FastAPI, **limits: int) -> None:
    """Gives every tenant these limits, by a clock that stands still."""
    app.state.bonbon = replace(app.state.bonbon, limits=RateLimits(Limits(**limits), {}, clock=lambda: 0.0))


async def test_the_tokens_are_those_that_the_model_reads(tmp_path: Path) -> None:
    async with embedded_api(tmp_path) as api:
        length = (await api.client.get("/v1/models/base")).json()["max_model_len"]
        read = await api.post("/tokenize", model="bonbon", prompt="Hello there", return_token_strs=True)
        words = {"tokens": [344, 432], "token_strs": ["Hello", "\u0120there"]}
        assert read == {"count": 2, "max_model_len": length, **words}
        assert (await api.post("/detokenize", model="base", tokens=read["tokens"])) == {"prompt": "Hello there"}

        chat = await api.post("/tokenize", messages=MESSAGES)
        assert (chat["token_strs"], chat["count"]) == (None, len(chat["tokens"]))
        answer = await api.chat(MESSAGES[0]["content"], max_tokens=1, best_of=2)
        assert (await api.group(answer))["prompt_token_ids"] == chat["tokens"]
        assert answer["usage"]["prompt_tokens"] == chat["count"]
        text = (await api.post("/detokenize", tokens=chat["tokens"]))["prompt"]
        assert text == "<|begin|><|user|>Where is my order?<|end|><|assistant|>"

        bare = await api.post("/tokenize", messages=MESSAGES, add_generation_prompt=False)
        assert bare["tokens"] == chat["tokens"][:-1]
        assert await api.post("/tokenize", prompt="") == {
            "count": 0, "max_model_len": length, "tokens": [], "token_strs": None,
        }  # fmt: skip
        refused = await api.post("/detokenize", 400, tokens=[5, 1024])
        assert refused["error"]["param"] == "tokens"


async def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    async with open_api(tmp_path) as api:
        for path, body, param in (
            ("/tokenize", {}, "prompt"),
            ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
            ("/tokenize", {"prompt": 5}, "prompt"),
            ("/tokenize", {"messages": []}, "messages"),
            ("/tokenize", {"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
            ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template"),
            ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
            ("/detokenize", {"tokens": "5"}, "tokens"),
            ("/detokenize", {}, "tokens"),
        ):
            response = await api.post(path, **body)
            assert response.status_code == 400, (path, body, response.text)
            assert error_of(response)["param"] == param
        response = await api.post("/tokenize", prompt="a", model="nobody")
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_the_fake_engine_has_them_too(tmp_path: Path) -> None:
    async with open_api(tmp_path) as api:
        read = (await api.post("/tokenize", prompt="please check", return_token_strs=True)).json()
        assert (read["count"], read["token_strs"]) == (2, ["please", "check"])
        assert (await api.post("/detokenize", tokens=[0, 1])).json() == {"prompt": "please check"}


async def test_a_key_is_needed_where_one_is_needed_to_draw(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_key="secret") as api:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert (await api.post(path, **body)).status_code == 401
            headers = {"authorization": "Bearer secret"}
            assert (await api.client.post(path, json=body, headers=headers)).status_code == 200


async def test_reading_a_prompt_is_charged_against_the_rate_limits(tmp_path: Path) -> None:
    async with open_api(tmp_path) as api:
        limit(api.app, requests_per_minute=4, tokens_per_minute=60)
        left = []
        for path, body in (
            ("/tokenize", {"prompt": "please check " * 10}),  # 20 tokens
            ("/tokenize", {"messages": MESSAGES}),  # 4 tokens
            ("/detokenize", {"tokens": [0, 1] * 8}),
        ):
            response = await api.post(path, **body)
            left.append(int(response.headers["x-ratelimit-remaining-tokens"]))
        assert left == [40, 36, 20]
        for path, body in (
            ("/tokenize", {"prompt": "please " * 200}),
            ("/tokenize", {"messages": [{"role": "user", "content": "please " * 200}]}),
            ("/detokenize", {"tokens": [1] * 100}),
        ):
            response = await api.post(path, **body)
            assert (response.status_code, error_of(response)["code"]) == (429, "rate_limit_exceeded")
            assert response.headers["retry-after"] == "40"
            assert response.headers["x-ratelimit-remaining-requests"] == "1"


async def test_a_prompt_that_cannot_be_read_costs_nothing(tmp_path: Path) -> None:
    async with embedded_api(tmp_path) as api:
        limit(api.app, requests_per_minute=1, tokens_per_minute=60)
        await api.post("/detokenize", 400, tokens=[5, 1024])
        await api.post("/detokenize", tokens=[5])
        await api.post("/detokenize", 429, tokens=[5])


async def test_a_prompt_whose_log_probabilities_are_computed_is_charged_beside_the_draws(tmp_path: Path) -> None:
    async with open_api(tmp_path) as api:
        for max_tokens in (0, 3):
            limit(api.app, tokens_per_minute=60)
            asked = {"model": "base", "prompt": "please check " * 10, "seed": 1, "ignore_eos": True}
            response = await api.post(COMPLETIONS, **asked, echo=True, logprobs=1, max_tokens=max_tokens)
            assert response.status_code == 200, response.text
            assert api.state.limits.headers("")["x-ratelimit-remaining-tokens"] == str(40 - max_tokens)
