"""Tests that options of the chat template apply to rendering, to the log, and to engines and rewards."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bonbon.demo.tiny_models import tiny_models
from bonbon.engines.text.prompt_reader import PromptReader
from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.pairs.group_rows import prompt_document, prompt_of
from bonbon.pairs.reading.pair_export import as_json_line
from bonbon.pairs.reading.reader import pairs
from bonbon.prompt import Message, Prompt
from bonbon.rewards.fake_reward import digest_score
from bonbon.tools import canonical
from tests.support.service.api import CHAT, MESSAGES, open_api
from tests.support.service.embedded_api import EmbeddedApi, embedded_api

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if enable_thinking %}think {{ reasoning_effort }} {% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PREFIX: list[Message] = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Dear Ada"}]


async def logged_prompt(api: EmbeddedApi, answer: Any) -> str:
    """Returns the text of the logged prompt tokens, after checking that the logged prompt renders to the same text."""
    group = await api.group(answer)
    prompt = prompt_of(group["prompt"])
    reader = PromptReader(load_tokenizer(Path(api.app.state.bonbon.engine._directory)), 1024)
    assert list(reader.read(prompt, 1024).token_ids) == group["prompt_token_ids"]
    assert prompt.digest == group["prompt_digest"]
    return str((await api.post("/detokenize", tokens=group["prompt_token_ids"]))["prompt"])


async def test_the_template_gets_what_a_request_says(tmp_path: Path) -> None:
    async with embedded_api(tmp_path, chat_template=TEMPLATE) as api:
        user = "<|user|>Where is my order?<|end|>"
        for fields, text in (
            ({}, user + "<|assistant|>"),
            ({"add_generation_prompt": True, "continue_final_message": False}, user + "<|assistant|>"),
            ({"add_generation_prompt": False}, user),
            ({"chat_template_kwargs": {"enable_thinking": True}}, user + "think  <|assistant|>"),
            (
                {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"},
                user + "think low <|assistant|>",
            ),
            ({"chat_template_kwargs": {"nobody_reads_this": [1]}}, user + "<|assistant|>"),
        ):
            answer = await api.chat(max_tokens=4, best_of=2, **fields)
            assert await logged_prompt(api, answer) == text
            assert (await api.group(answer))["unclean"] in (None, "tied")
        for reserved in ("chat_template", "tokenize", "tools", "messages"):
            kwargs = {reserved: "x"}
            refused = await api.post(CHAT, 400, model="base", messages=MESSAGES, chat_template_kwargs=kwargs)
            assert refused["error"]["param"] == "chat_template_kwargs"
            assert reserved in refused["error"]["message"]


async def test_an_answer_continues_the_final_message(tmp_path: Path) -> None:
    async with embedded_api(tmp_path) as api:
        body: dict[str, Any] = {
            "model": "bonbon",
            "messages": PREFIX,
            "max_tokens": 6,
            "seed": 1,
            "continue_final_message": True,
        }
        read: dict[str, Prompt] = {}
        api.reward.function = lambda prompt, completion: (
            read.setdefault(prompt.digest, prompt) is None or digest_score(prompt, completion)
        )
        answer = await api.post(CHAT, **body)
        text = "<|begin|><|user|>Where is it?<|end|><|assistant|>Dear Ada"
        assert await logged_prompt(api, answer) == text
        # Tokens go on from the message, as a completion does from its prompt.
        completion = await api.post("/v1/completions", model="bonbon", prompt=text, max_tokens=6, seed=1)
        group, same = await api.group(answer), await api.group(completion)
        assert group["prompt_token_ids"] == same["prompt_token_ids"]
        assert [c["text"] for c in group["candidates"]] == [c["text"] for c in same["candidates"]]
        # The reward reads the whole message.
        assert list(read.values()) == [Prompt(tuple(PREFIX[:1])), Prompt(text=text)]
        assert list(api.reward.calls[0]) == list(dict.fromkeys("Dear Ada" + c["text"] for c in group["candidates"]))
        first = await anext(pairs(api.app.state.bonbon.database, version=None))
        line = json.loads(as_json_line(first))
        assert line["prompt"] == PREFIX[:1]
        assert line["chosen"][0]["content"].startswith("Dear Ada")

        for messages, fields in (
            (PREFIX, {"continue_final_message": True, "add_generation_prompt": True}),
            (PREFIX[:1], {"continue_final_message": True}),
        ):
            refused = await api.post(CHAT, 400, **{"model": "base", "messages": messages, **fields})
            assert refused["error"]["param"] == "continue_final_message"


async def test_a_reasoning_effort_that_the_template_does_not_know_is_refused(tmp_path: Path) -> None:
    async with embedded_api(tmp_path) as api:
        refused = await api.post(CHAT, 400, model="base", messages=MESSAGES, reasoning_effort="high")
        assert refused["error"]["param"] == "reasoning_effort"
        assert (await api.chat(max_tokens=2, reasoning_effort="none"))["choices"]


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"'])
async def test_values_that_are_no_plain_json_are_refused(tmp_path: Path, value: str) -> None:
    async with open_api(tmp_path) as api:
        body = json.dumps({"model": "base", "messages": MESSAGES, "chat_template_kwargs": {"x": 0}}).replace("0", value)
        response = await api.client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "chat_template_kwargs"


def test_the_options_are_part_of_what_a_prompt_is() -> None:
    plain = Prompt(tuple(PREFIX))
    thinking = replace(plain, template=canonical({"enable_thinking": True}))
    continuing = replace(plain, template=canonical({"continue_final_message": True, "add_generation_prompt": False}))
    assert len({plain.digest, thinking.digest, continuing.digest}) == 3
    for prompt in (plain, thinking, continuing):
        assert prompt_of(json.loads(json.dumps(prompt_document(prompt)))) == prompt
    # A conversation that goes on begins as it began, whatever its last turn asked for.
    assert continuing.root_digest == plain.root_digest
    assert thinking.root_digest != plain.root_digest
    assert continuing.plain == Prompt(tuple(PREFIX[:1]))
    assert (continuing.continued, plain.continued) == ("Dear Ada", "")
    with pytest.raises(ValueError, match="options of the chat template need a prompt of messages"):
        Prompt(text="x", template="{}")


def test_the_shipped_model_reads_a_chat_as_before() -> None:
    reader = PromptReader(load_tokenizer(tiny_models().policy), 1024)
    assert reader.read(Prompt.user("Hello"), 1024).text == "<|begin|><|user|>Hello<|end|><|assistant|>"
