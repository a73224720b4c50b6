"""Complete answers of both endpoints: choices, fields and values."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bonbon.engines.fake_engine import FakeEngine
from bonbon.keys.key_records import Scope
from bonbon.keys.key_store import create_key
from bonbon.prompt import Prompt
from service.schemas.replies import ChatCompletion, Completion
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, Api, open_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path) as running:
        yield running


async def test_a_chat_is_answered_with_the_best_of_n(api: Api) -> None:
    body = await api.chat(bonbon={"candidates": True})
    ChatCompletion.model_validate(body)
    extension = body["bonbon"]
    best = max(extension["candidates"], key=lambda candidate: candidate["reward"])
    assert (extension["n"], len(extension["candidates"]), extension["version"]) == (8, 8, "fake")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": best["text"], "refusal": None}
    assert extension["rewards"] == [best["reward"]]
    assert extension["win_probabilities"] == [pytest.approx(8 / 9)]
    assert extension["chosen"] == [best["index"]]
    assert best["rank"] == 8
    assert not extension["degraded"]
    assert extension["degraded_reason"] is None
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "bonbon"


async def test_n_choices_are_the_n_best_in_order(api: Api) -> None:
    body = await api.chat(n=3, best_of=5, bonbon={"candidates": True})
    ChatCompletion.model_validate(body)
    candidates = sorted(body["bonbon"]["candidates"], key=lambda candidate: -candidate["reward"])
    assert len(candidates) == 5
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == [c["text"] for c in candidates[:3]]
    assert [choice["finish_reason"] for choice in body["choices"]] == [c["finish_reason"] for c in candidates[:3]]
    assert body["bonbon"]["rewards"] == [c["reward"] for c in candidates[:3]]
    assert body["bonbon"]["win_probabilities"] == [pytest.approx(rank / 6) for rank in (5, 4, 3)]


async def test_usage_counts_the_returned_choices_and_the_extension_all_that_was_drawn(api: Api) -> None:
    body = await api.chat(n=2, bonbon={"candidates": True})
    candidates, chosen = body["bonbon"]["candidates"], body["bonbon"]["chosen"]
    returned = sum(candidates[index]["tokens"] for index in chosen)
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": returned, "total_tokens": 4 + returned,
                             "prompt_tokens_details": {"cached_tokens": 0}}  # fmt: skip
    assert body["bonbon"]["tokens_drawn"] == sum(candidate["tokens"] for candidate in candidates) > returned


async def test_candidates_are_described_only_on_request(api: Api) -> None:
    assert "candidates" not in (await api.chat())["bonbon"]
    assert "candidates" not in (await api.chat(bonbon={}))["bonbon"]


async def test_base_answers_with_one_draw_that_nothing_scores(api: Api) -> None:
    body = await api.chat(model="base")
    assert body["bonbon"]["n"] == 1
    assert body["bonbon"]["rewards"] == body["bonbon"]["win_probabilities"] == [None]
    assert api.reward.calls == []


async def test_temperature_0_is_one_greedy_draw(api: Api) -> None:
    body = await api.chat(temperature=0)
    assert body["bonbon"]["n"] == 1
    assert body["choices"][0]["message"]["content"] == "please please please please"
    assert (await api.complete(temperature=0.0, n=1, best_of=1))["bonbon"]["n"] == 1


@pytest.mark.parametrize("given", [{"n": 2}, {"best_of": 4}])
async def test_temperature_0_leaves_nothing_to_choose_from(api: Api, given: dict[str, Any]) -> None:
    error = await api.refusal(temperature=0, **given)
    assert error["param"] == next(iter(given))
    assert "temperature 0" in error["message"]


async def test_the_same_seed_gives_the_same_answer(api: Api) -> None:
    first, again, other = [await api.chat(seed=seed) for seed in (7, 7, 8)]
    assert first["choices"] == again["choices"]
    assert first["choices"] != other["choices"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_by_either_name(api: Api, name: str) -> None:
    body = await api.chat(best_of=2, bonbon={"candidates": True}, **{name: 2})
    assert all(candidate["tokens"] <= 2 for candidate in body["bonbon"]["candidates"])
    assert (await api.chat(max_tokens=3, max_completion_tokens=3))["usage"]["completion_tokens"] <= 3


async def test_stop_strings_end_a_candidate_and_stay_out_of_its_text(api: Api) -> None:
    for stop in ("please", ["please"], [*"1234567", "please"]):
        body = await api.chat(model="base", stop=stop, seed=4, max_tokens=200)
        assert "please" not in body["choices"][0]["message"]["content"]
        assert body["choices"][0]["finish_reason"] == "stop"
    assert await api.chat(stop=None)


async def test_content_may_come_in_text_parts_and_developer_is_system(api: Api) -> None:
    body = await api.chat(
        messages=[
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [], "annotations": []},
            {"role": "user", "content": "Go on"},
        ]
    )
    group = await api.state.pair_log.group(body["bonbon"]["group_id"])
    assert group is not None
    assert group.prompt.messages == (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello\nthere"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Go on"},
    )


async def test_chat_logprobs(api: Api) -> None:
    body = await api.chat(logprobs=True, top_logprobs=2, n=2, max_tokens=4)
    ChatCompletion.model_validate(body)
    for choice in body["choices"]:
        content = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in content) == choice["message"]["content"]
        assert choice["logprobs"]["refusal"] is None
        for token in content:
            assert token["logprob"] == pytest.approx(-math.log(13))
            assert bytes(token["bytes"]).decode() == token["token"]
            assert len(token["top_logprobs"]) == 2
    plain = await api.chat(logprobs=True, max_tokens=2)
    assert all(token["top_logprobs"] == [] for token in plain["choices"][0]["logprobs"]["content"])
    assert (await api.chat())["choices"][0]["logprobs"] is None


async def test_completion_logprobs(api: Api) -> None:
    body = await api.complete(logprobs=2, max_tokens=4)
    Completion.model_validate(body)
    choice = body["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset, logprob, top in zip(*(logprobs[key] for key in (
        "tokens", "text_offset", "token_logprobs", "top_logprobs")), strict=True):  # fmt: skip
        assert choice["text"][offset : offset + len(token)] == token
        assert top[token] == logprob
        assert top.keys() == {"please", "check", token}
    drawn_only = (await api.complete(logprobs=0, max_tokens=4))["choices"][0]["logprobs"]
    assert [list(top) for top in drawn_only["top_logprobs"]] == [[token] for token in drawn_only["tokens"]]


@pytest.mark.parametrize("prompt", ["Dear customer", ["Dear customer"], [3, 1, 4], [[3, 1, 4]]])
async def test_one_prompt_in_each_form(api: Api, prompt: Any) -> None:
    body = await api.complete(prompt=prompt, n=2)
    Completion.model_validate(body)
    assert len(body["choices"]) == 2
    assert "groups" not in body["bonbon"]
    group = await api.state.pair_log.group(body["bonbon"]["group_id"])
    assert group is not None
    assert group.prompt.text == "Dear customer" or group.prompt.token_ids == (3, 1, 4)


@pytest.mark.parametrize("prompts", [["one", "two more", "three"], [[1], [2, 3], [4]]])
async def test_several_prompts_are_answered_in_order(api: Api, prompts: list[Any]) -> None:
    body = await api.complete(prompt=prompts, n=2, best_of=4, bonbon={"candidates": True})
    Completion.model_validate(body)
    extension, groups = body["bonbon"], body["bonbon"]["groups"]
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert extension["group_id"] is None
    assert len(groups) == 3
    assert extension["tokens_drawn"] == sum(group["tokens_drawn"] for group in groups)
    assert extension["rewards"] == [reward for group in groups for reward in group["rewards"]]
    for i, group in enumerate(groups):
        logged = await api.state.pair_log.group(group["group_id"])
        assert logged is not None
        assert logged.prompt.text == prompts[i] or logged.prompt.token_ids == tuple(prompts[i])
        texts = [group["candidates"][index]["text"] for index in group["chosen"]]
        assert [choice["text"] for choice in body["choices"][2 * i : 2 * i + 2]] == texts
    assert body["usage"]["prompt_tokens"] == 4


async def test_echo_puts_the_prompt_before_the_text(api: Api) -> None:
    plain, echoed = await api.complete(n=2), await api.complete(n=2, echo=True)
    assert [c["text"] for c in echoed["choices"]] == ["Dear customer" + c["text"] for c in plain["choices"]]


async def test_max_tokens_shrinks_to_the_free_space_when_nobody_asked_for_more(tmp_path: Path) -> None:
    async with open_api(tmp_path, engine=FakeEngine(context_length=20), default_max_tokens=100) as api:
        body = await api.complete(prompt="word " * 17, best_of=3, bonbon={"candidates": True})
        assert all(candidate["tokens"] <= 3 for candidate in body["bonbon"]["candidates"])
        group = await api.state.pair_log.group(body["bonbon"]["group_id"])
        assert group is not None
        assert group.sampling.max_tokens == 3
        assert api.engine.running == 0


async def test_a_failing_reward_degrades_the_answer_to_the_first_candidate(api: Api) -> None:
    api.reward.failure = "the reward is down"
    body = await api.chat(bonbon={"candidates": True})
    extension = body["bonbon"]
    assert extension["degraded"]
    assert extension["degraded_reason"] == "the reward could not score the candidates, so the first one is the answer"
    assert extension["chosen"] == [0]
    assert extension["rewards"] == [None]
    assert body["choices"][0]["message"]["content"] == extension["candidates"][0]["text"]


@pytest.mark.parametrize(
    ("how", "meaning"), [("failed", "could not score"), ("late", "in time"), ("invalid", "no usable scores")]
)
async def test_a_client_learns_nothing_of_where_the_reward_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, meaning: str
) -> None:
    address = "http://10.0.0.7:9000/score"
    async with open_api(tmp_path, reward_deadline=0.05, keys_poll=0.01) as api:
        _, key = await create_key(api.state.database, "reader", scopes=[Scope.COMPLETE, Scope.EXPORT])
        api.client.headers["authorization"] = f"Bearer {key}"
        api.reward.name = address
        if how == "failed":
            api.reward.failure = f"{address} answered 500: Traceback"
        elif how == "late":
            api.reward.delay = 60
        else:
            api.reward.function = lambda prompt, text: math.nan
        headers = {"idempotency-key": "one"}
        asked: dict[str, Any] = {"model": "bonbon", "messages": MESSAGES}
        first, again = [(await api.client.post(CHAT, json=asked, headers=headers)).json() for _ in range(2)]
        streamed = (await api.post(CHAT, **asked, stream=True)).text
        several = await api.complete(prompt=["one", "two"])
        while (read := await api.client.get(f"/v1/groups/{first['bonbon']['group_id']}")).status_code == 401:
            await asyncio.sleep(0.01)  # the key is not known yet
        group = await api.state.pair_log.group(first["bonbon"]["group_id"])
    assert read.json()["degraded"].endswith("so the first one is the answer")
    # The name of a reward is the operator's choice, and shown; its errors are not.
    assert "Traceback" not in read.text
    told = [first["bonbon"], *several["bonbon"]["groups"], several["bonbon"]]
    assert all(meaning in one["degraded_reason"] for one in told)
    assert again["bonbon"]["degraded_reason"].endswith("so the first one is the answer")
    assert meaning in streamed
    assert address not in json.dumps([first, again, several]) + streamed
    assert group is not None
    assert address in (group.degraded or "")
    assert address in capsys.readouterr().out


async def test_null_and_neutral_values_ask_for_nothing(api: Api) -> None:
    neutral: dict[str, Any] = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "service_tier": "auto", "modalities": ["text"], "functions": None,
        "audio": None, "temperature": None, "top_p": None, "n": None, "best_of": None, "stop": None, "seed": None,
        "stream": None, "stream_options": None, "user": None, "metadata": None, "store": None, "max_tokens": None,
        "max_completion_tokens": None, "logprobs": None, "top_logprobs": None, "reasoning_effort": None,
        "prompt_cache_key": "anything", "web_search_options": None, "verbosity": None, "repetition_penalty": 1.0,
        "top_k": -1, "min_p": 0, "min_tokens": 0, "ignore_eos": False, "parallel_tool_calls": False,
        "prompt_cache_retention": "24h", "chat_template_kwargs": {}, "never_heard_of": None,
    }  # fmt: skip
    assert (await api.chat(**neutral))["bonbon"]["n"] == 8
    for extension in (None, {"candidates": None}):
        assert (await api.chat(bonbon=extension))["bonbon"]["n"] == 8
    response = await api.post(COMPLETIONS, model="base", prompt="a", suffix=None, logit_bias=None, echo=None)
    assert response.status_code == 200


async def test_whole_numbers_may_be_written_with_a_decimal_point(api: Api) -> None:
    assert (await api.chat(top_logprobs=0))["choices"][0]["logprobs"] is None
    body = await api.chat(n=2.0, best_of=8.0, max_tokens=4.0, seed=1.0, logprobs=True, top_logprobs=2.0)
    assert (body["bonbon"]["n"], len(body["choices"])) == (8, 2)
    same = await api.chat(n=2, best_of=8, max_tokens=4, seed=1, logprobs=True, top_logprobs=2)
    assert body["choices"] == same["choices"]
    assert (await api.complete(logprobs=1.0, max_tokens=2.0))["choices"]


async def test_stream_options_that_ask_for_nothing_are_accepted(api: Api) -> None:
    options = {"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": False}
    response = await api.post(CHAT, model="base", messages=MESSAGES, stream=True, stream_options=options)
    assert response.status_code == 200


async def test_messages_come_back_as_other_providers_returned_them(api: Api) -> None:
    answered = {
        "role": "assistant", "content": "Hi", "refusal": None, "audio": None, "function_call": None, "tool_calls": None,
        "annotations": [{"type": "url_citation"}], "reasoning_content": None, "reasoning": "", "thinking_blocks": [],
        "provider_specific_fields": {"refusal": None}, "cache_control": {"type": "ephemeral"}, "parsed": None,
        "tool_call_id": None, "images": None,
    }  # fmt: skip
    part = {"type": "text", "text": "Where is it?", "cache_control": {"type": "ephemeral"}}
    body = await api.chat(messages=[*MESSAGES, answered, {"role": "user", "content": [part]}])
    group = await api.state.pair_log.group(body["bonbon"]["group_id"])
    assert group is not None
    assert group.prompt.messages == (
        *MESSAGES,
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Where is it?"},
    )


async def test_tool_calls_come_back_as_other_providers_returned_them(api: Api) -> None:
    function = {"name": "find", "arguments": "{}", "parsed_arguments": {}, "thought_signature": "x"}
    call = {"id": "1", "type": "function", "index": 0, "provider_specific_fields": {}, "function": function}
    tools = [
        {
            "type": "function",
            "cache_control": {"type": "ephemeral"},
            "function": {"name": "find", "cache_control": {"type": "ephemeral"}},
        }
    ]
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "name": "find", "content": "it is on its way"},
    ]
    # The body is sound; the engine of this service calls no tools.
    error = await api.refusal(messages=messages, tools=tools, parallel_tool_calls=False)
    assert "this engine does not support tools" in error["message"]


async def test_a_name_reaches_the_model_and_not_the_reward(api: Api) -> None:
    scored: list[Prompt] = []
    api.reward.function = lambda prompt, text: scored.append(prompt) or len(text)  # type: ignore[func-returns-value]
    roles = ["system", "developer", "user", "assistant", "user"]
    names = ["rules", "rules", "ada", "bob", ""]
    messages = [{"role": role, "content": "Hello", "name": name} for role, name in zip(roles, names, strict=True)]
    body = await api.chat(messages=messages)
    group = await api.state.pair_log.group(body["bonbon"]["group_id"])
    assert group is not None
    assert group.prompt.messages is not None
    assert [message.get("name") for message in group.prompt.messages] == ["rules", "rules", "ada", "bob", None]
    assert scored
    assert not any("name" in message for prompt in scored for message in prompt.messages or ())


async def test_the_interface_documents_its_bodies(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    answer = document["paths"][CHAT]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["$ref"].endswith("/ChatCompletion")
    chunk = answer["text/event-stream"]["schema"]
    assert chunk["properties"]["choices"]["items"]["properties"]["delta"]["properties"]["content"]
    request = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "best_of" in document["components"]["schemas"][request["$ref"].rpartition("/")[2]]["properties"]
    assert (await api.client.get("/docs")).status_code == 200
