"""`/tokenize` and `/detokenize`, compatible with vLLM's server."""

from pathlib import Path

from tests.support.service.api import MESSAGES, error_of, open_api
from tests.support.service.embedded_api import embedded_api


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
