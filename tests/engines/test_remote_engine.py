"""Tests a fleet of servers that speak vLLM's HTTP: balancing, retries, errors, aborts, health, quorum, reconciling."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from bonbon.engines import build_engine
from bonbon.engines.candidates import Draws, collect
from bonbon.engines.engine import Delta, DrawRequest, Sampling, Started, Tokens, VersionFiles, VersionKind
from bonbon.engines.remote.remote_engine import RemoteEngine
from bonbon.engines.remote.remote_options import RemoteOptions
from bonbon.errors import EngineError, PromptTooLong, UnknownVersion, UserError
from bonbon.pairs.group_records import salt_of
from bonbon.prompt import Prompt
from bonbon.settings import Settings
from bonbon.tools import ToolCall, canonical
from tests.support.servers.vllm_double import CONTEXT, END, Double, doubles
from tests.support.until import until

PROMPT = Prompt.user("Where is my order?")
SAMPLING = Sampling(max_tokens=12, seed=3)
VERSION = VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, Path("/versions/ab12"))
TOOLS = canonical([{"type": "function", "function": {"name": "get_order"}}])


@pytest.fixture
def pair() -> Iterator[list[Double]]:
    with doubles(2) as made:
        yield made


@asynccontextmanager
async def fleet(servers: list[Double], **options: Any) -> AsyncIterator[RemoteEngine]:
    urls = tuple(server.url for server in servers)
    engine = RemoteEngine("base", RemoteOptions(**{"urls": urls, "health_interval": 0.05} | options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def draw(
    engine: RemoteEngine, prompt: Prompt = PROMPT, version: str = "base", n: int = 1, **fields: Any
) -> Draws:
    sampling = fields.pop("sampling", SAMPLING)
    return await collect(engine, DrawRequest(prompt, version, n, sampling, **fields))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (PROMPT, "Where is my order?"),
        (Prompt(text="Dear customer"), "Dear customer"),
        (Prompt(token_ids=(3, 1, 4)), "or\u2028der check today"),
    ],
)
@pytest.mark.parametrize("deltas", [False, True])
async def test_draws_what_the_protocol_says(pair: list[Double], prompt: Prompt, text: str, deltas: bool) -> None:
    async with fleet(pair) as engine:
        sampling = Sampling(max_tokens=12, seed=3, top_logprobs=2)
        draws = await draw(engine, prompt, n=3, sampling=sampling, deltas=deltas)
        assert await engine.loaded() == {"base"}
        assert engine.context_length == CONTEXT
        again = await draw(engine, prompt, n=3, sampling=sampling, deltas=not deltas)
    assert draws.prompt.token_ids
    assert draws.prompt.text == text
    for one in draws.draws:
        assert len(one.token_ids) == len(one.logprobs) == len(one.tokens) == len(one.alternatives)
        assert "".join(token.text for token in one.tokens) == one.text
        assert one.finish_reason == ("stop" if one.token_ids[-1] == END else "length")
        assert [a.token.text for a in one.alternatives[0]] == ["please", "check"]
    assert len({one.text for one in draws.draws}) > 1
    assert again.draws == draws.draws


async def test_what_a_server_is_asked_for_leaves_nothing_to_its_defaults(pair: list[Double]) -> None:
    async with fleet(pair[:1]) as engine:
        sampling = Sampling(max_tokens=5, temperature=0.7, stop=("x",), response_format='{"type":"json_object"}')
        await draw(engine, n=2, sampling=sampling)
        await draw(engine, sampling=Sampling(max_tokens=5, seed=1))
        await draw(engine, sampling=Sampling(max_tokens=5, seed=2))
    first, *seeded = pair[0].draws
    asked = {"n": 2, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "stop": ["x"]}
    asked |= {"model": "tiny", "max_completion_tokens": 5, "response_format": {"type": "json_object"}}
    assert asked.items() <= first.items()
    assert "seed" not in first
    plain = {"frequency_penalty": 0, "presence_penalty": 0, "min_tokens": 0, "ignore_eos": False}
    assert plain.items() <= first.items()
    assert not {"logit_bias", "chat_template_kwargs", "add_generation_prompt"} & first.keys()
    # The server seeds candidate i with seed + i: neighbouring seeds must not share candidates.
    assert abs(seeded[0]["seed"] - seeded[1]["seed"]) > 1000


async def test_sampling_fields_and_template_options_reach_the_server(pair: list[Double]) -> None:
    asked: dict[str, Any] = {
        "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "ignore_eos": True, "min_tokens": 2,
    }  # fmt: skip
    options = {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "reasoning_effort": "low",
        "think": False,
    }
    prompt = replace(Prompt.user("a"), template=json.dumps(options))
    async with fleet(pair[:1]) as engine:
        await draw(engine, prompt, sampling=Sampling(max_tokens=5, logit_bias=((1, 2.0), (2, -3.0)), **asked))
        tokens = await engine.tokenize(prompt, add_special_tokens=False)
        assert await engine.detokenize([0, 1]) == "please check"
    (body,) = pair[0].draws
    assert asked.items() <= body.items()
    assert body["logit_bias"] == {"1": 2.0, "2": -3.0}
    fields = {name: value for name, value in options.items() if name != "think"}
    assert fields.items() <= body.items()
    assert body["chat_template_kwargs"] == {"think": False}
    (read,) = pair[0].tokenized
    assert read["chat_template_kwargs"] == {"think": False, "reasoning_effort": "low"}
    assert (read["continue_final_message"], read["add_generation_prompt"]) == (True, False)
    assert read["add_special_tokens"] is False
    assert tokens == Tokens((1,), ("a",))


async def test_tenants_share_no_prefix_cache(pair: list[Double]) -> None:
    """vLLM finds a cached prompt only under the salt of the request that cached it."""
    async with fleet(pair[:1]) as engine:
        for tenant in ("ada", "bob", ""):
            request = DrawRequest(Prompt.user("Hi"), engine.base, 1, Sampling(max_tokens=2), salt=salt_of(tenant))
            await collect(engine, request)
    salts = [body.get("cache_salt") for body in pair[0].draws]
    assert len(set(salts)) == 3
    assert salts[2] is None
    assert not any(tenant in salt for tenant, salt in zip(("ada", "bob"), salts, strict=False) if salt)


async def test_greedy_candidates_are_drawn_once(pair: list[Double]) -> None:
    async with fleet(pair[:1]) as engine:
        draws = await draw(engine, n=3, sampling=Sampling(max_tokens=9, temperature=0))
    assert [one.text for one in draws.draws] == ["please check"] * 3
    assert pair[0].draws[0]["n"] == 1


async def test_the_least_busy_server_gets_the_next_draw(pair: list[Double]) -> None:
    for server in pair:
        server.delay = 0.05
    async with fleet(pair) as engine:
        await asyncio.gather(*(draw(engine, n=8 if i == 0 else 1) for i in range(8)))
    # The first of the eight weighs as much as eight: all others go to the other server.
    assert sorted(len(server.draws) for server in pair) == [1, 7]


async def test_the_key_is_sent_and_a_wrong_one_named(pair: list[Double], monkeypatch: pytest.MonkeyPatch) -> None:
    pair[0].key = "s3cret"
    monkeypatch.setenv("FLEET_KEY", "s3cret")
    async with fleet(pair[:1], api_key_env="FLEET_KEY") as engine:
        await draw(engine)
    async with fleet(pair[:1], api_key="wrong") as engine:
        with pytest.raises(EngineError, match=r"refuses the gateway's API key; set engine_options.api_key"):
            await engine.check()
    monkeypatch.delenv("FLEET_KEY")
    with pytest.raises(UserError, match="FLEET_KEY"):
        async with fleet(pair[:1], api_key_env="FLEET_KEY"):
            pass


# Failures


async def test_a_draw_goes_elsewhere_once(pair: list[Double]) -> None:
    sick, well = pair
    sick.fault = JSONResponse({"error": {"message": "secret stack trace", "code": 500}}, 500)
    async with fleet(pair) as engine:
        for _ in range(10):
            await draw(engine)
        assert len(well.draws) == 10
        well.fault = PlainTextResponse("secret", 503)
        sick.requests.clear()
        well.requests.clear()
        with pytest.raises(EngineError, match=r"answered with status 50[03]; try again") as caught:
            await draw(engine)
        assert "secret" not in str(caught.value)
        assert (len(sick.draws), len(well.draws)) == (1, 1)


async def test_a_server_that_dies_while_it_draws_costs_no_whole_draw(pair: list[Double]) -> None:
    for server in pair:
        server.delay = 0.03
    async with fleet(pair) as engine:
        drawing = [asyncio.create_task(draw(engine, n=2)) for _ in range(8)]
        await until(lambda: all(server.drawing for server in pair))
        await asyncio.to_thread(pair[0].stop)
        draws = [await task for task in drawing]
        assert all(one.finish_reason for each in draws for one in each.draws)
        await draw(engine)
        await engine.check()


async def test_a_stream_is_never_repeated_once_it_has_begun(pair: list[Double]) -> None:
    for server in pair:
        server.breaks_after = 1
    async with fleet(pair) as engine:
        events: list[Started | Delta] = []

        async def read() -> None:
            async for event in engine.draw(DrawRequest(PROMPT, "base", 2, SAMPLING, deltas=True)):
                events.append(event)  # noqa: PERF401 - what came before the failure counts

        with pytest.raises(EngineError, match="closed a stream before its end; try again"):
            await read()
        assert sum(len(server.draws) for server in pair) == 1
    assert isinstance(events[0], Started)
    assert sum(isinstance(event, Delta) for event in events) == 1


async def test_a_stream_that_has_not_begun_is_repeated(pair: list[Double]) -> None:
    pair[0].breaks_after = 0
    async with fleet(pair) as engine:
        while pair[0].breaks_after is not None:
            draws = await draw(engine, Prompt(text="Dear customer"), n=2, deltas=True)
            assert all(one.finish_reason for one in draws.draws)


@pytest.mark.parametrize("deltas", [False, True])
async def test_closing_a_draw_ends_it_on_the_server(pair: list[Double], deltas: bool) -> None:
    pair[0].delay = 0.1
    async with fleet(pair[:1]) as engine:
        for hang_up in range(1, 4):
            task = asyncio.create_task(draw(engine, n=4, sampling=Sampling(max_tokens=40, seed=5), deltas=deltas))
            await until(lambda: pair[0].drawing == 1)
            task.cancel()
            await until(lambda: pair[0].drawing == 0)
            assert pair[0].aborted == hang_up
            assert task.cancelled() or task.cancelling()


async def test_a_draw_has_a_deadline(pair: list[Double]) -> None:
    pair[0].delay = 0.2
    async with fleet(pair[:1], deadline=0.1) as engine:
        for deltas in (False, True):
            with pytest.raises(EngineError, match="did not answer in time"):
                await draw(engine, deltas=deltas)


async def test_refusals_are_rewritten(pair: list[Double]) -> None:
    async with fleet(pair[:1]) as engine:
        with pytest.raises(PromptTooLong, match="your prompt resulted in 100 tokens") as long:
            await draw(engine, Prompt(text="word " * 100))
        assert long.value.param == "prompt"
        pair[0].requests.clear()
        with pytest.raises(PromptTooLong, match="4 in the messages, 61 in the completion"):
            await draw(engine, sampling=Sampling(max_tokens=61))
        with pytest.raises(PromptTooLong, match="3 in the prompt, 62 in the completion"):
            await draw(engine, Prompt(token_ids=(1, 2, 3)), sampling=Sampling(max_tokens=62))
        assert pair[0].draws == []  # refused before anything was drawn
        assert (await draw(engine, sampling=Sampling(max_tokens=60))).prompt.token_ids
        with pytest.raises(UnknownVersion, match="'nope' is not loaded"):
            await draw(engine, version="nope")
        with pytest.raises(UserError, match="n = 0"):
            await draw(engine, n=0)
        pair[0].fault = JSONResponse({"error": {"message": "bad " * 5000, "param": "stop", "code": 400}}, 400)
        with pytest.raises(UserError, match="the engine refuses the request: bad") as refused:
            await draw(engine)
        assert refused.value.param == "stop"
        assert len(str(refused.value)) < 400
        for nonsense in (PlainTextResponse("fine"), JSONResponse([1]), JSONResponse({"choice": 1})):
            pair[0].fault = nonsense
            with pytest.raises(
                EngineError, match=r"did not answer with (JSON|a JSON object)|sent an invalid answer: KeyError"
            ):
                await draw(engine)


async def test_an_answer_without_log_probabilities_breaks_the_contract(pair: list[Double]) -> None:
    choice = {"index": 0, "message": {"content": "x"}, "token_ids": [1], "finish_reason": "stop", "logprobs": None}
    pair[0].fault = JSONResponse({"choices": [choice], "prompt_token_ids": [1], "prompt_text": "x"})
    async with fleet(pair[:1]) as engine:
        with pytest.raises(
            EngineError, match="sent an invalid answer: ValueError: 1 token ids with 0 log-probabilities"
        ):
            await draw(engine)


async def test_a_long_answer_is_cut_off(pair: list[Double]) -> None:
    pair[0].fault = PlainTextResponse("x" * 5000)
    async with fleet(pair[:1], max_response_bytes=4096) as engine:
        with pytest.raises(EngineError, match="more than 4096 bytes"):
            await draw(engine)


# Health


async def test_a_fleet_that_is_not_there_is_waited_for(pair: list[Double]) -> None:
    pair[0].stop()
    pair[1].healthy = False
    async with fleet(pair) as engine:
        with pytest.raises(EngineError, match=r"no server .*ConnectorError.*its /health returned status 503"):
            await engine.check()
        with pytest.raises(EngineError, match="no server of the fleet can serve base at the moment") as caught:
            await draw(engine)
        assert "127.0.0.1" not in str(caught.value)
        with pytest.raises(EngineError, match="no server"):
            await engine.load(VERSION)
        assert await engine.loaded() == frozenset()
        await asyncio.to_thread(pair[0].start)
        while not await engine.loaded():
            await asyncio.sleep(0.01)
        await engine.check()
        await draw(engine)


async def test_servers_that_cannot_be_trusted_get_no_requests(pair: list[Double]) -> None:
    pair[0].raw_logprobs = True
    pair[1].name = "another"
    async with fleet(pair, model="tiny") as engine:
        with pytest.raises(EngineError, match=r"--logprobs-mode processed_logprobs.*it serves another"):
            await engine.check()


async def test_an_unhealthy_server_gets_no_requests_until_it_is_well(pair: list[Double]) -> None:
    async with fleet(pair) as engine:
        pair[0].healthy = False
        await asyncio.sleep(0.2)
        for _ in range(8):
            await draw(engine)
        assert len(pair[0].draws) == 0
        pair[0].healthy = True
        while not pair[0].draws:
            await draw(engine)


# Versions


async def test_a_version_is_on_every_server_before_it_is_drawn_from(pair: list[Double]) -> None:
    async with fleet(pair) as engine:
        await engine.load(VERSION)
        await engine.load(VERSION)
        assert [server.adapters for server in pair] == [{VERSION.name: "/versions/ab12"}] * 2
        assert await engine.loaded() == {"base", VERSION.name}
        await draw(engine, version=VERSION.name)
        assert [body["model"] for server in pair for body in server.draws] == [VERSION.name]
        await engine.unload(VERSION.name)
        await engine.unload(VERSION.name)
        await engine.unload("base")
        assert [server.adapters for server in pair] == [{}] * 2
        with pytest.raises(UnknownVersion):
            await draw(engine, version=VERSION.name)
        assert await engine.loaded() == {"base"}


async def test_a_load_that_nobody_waits_for_leaves_nothing_wanted(pair: list[Double]) -> None:
    async with fleet(pair) as engine:
        for server in pair:
            server.delay = 0.5
        loading = asyncio.create_task(engine.load(VERSION))
        await until(lambda: all(VERSION.name in server.adapters for server in pair))
        loading.cancel()
        await asyncio.wait({loading})
        with pytest.raises(UnknownVersion):
            await draw(engine, version=VERSION.name)
        for server in pair:
            server.delay = 0.0
        await engine.load(VERSION)
        await draw(engine, version=VERSION.name)


async def test_gateways_share_a_fleet(pair: list[Double]) -> None:
    async with fleet(pair) as one, fleet(pair) as other:
        await asyncio.gather(one.load(VERSION), other.load(VERSION))
        await draw(one, version=VERSION.name)
        await one.unload(VERSION.name)
        # The other one still wants it, whether its next look or its next draw notices first.
        await draw(other, version=VERSION.name)
        await until(lambda: all(VERSION.name in server.adapters for server in pair))
        foreign = VersionFiles(VERSION.name, VersionKind.ADAPTER, Path("/elsewhere"))
        with pytest.raises(UserError, match=r"another adapter called .*, from /versions/ab12"):
            await one.load(foreign)


async def test_a_quorum_decides(pair: list[Double]) -> None:
    with doubles(1) as third:
        servers = [*pair, *third]
        pair[0].ranks[VERSION.name] = 16
        async with fleet(servers) as engine:
            await engine.load(VERSION)  # two of three
            for _ in range(6):
                await draw(engine, version=VERSION.name)
            assert pair[0].draws == []
            assert {VERSION.name in server.adapters for server in servers[1:]} == {True}
            await engine.unload(VERSION.name)
            pair[1].ranks[VERSION.name] = 16
            with pytest.raises(UserError, match=r"1 of 3 servers serve .*, but 2 must: .*max_lora_rank 8.* --max-lora"):
                await engine.load(VERSION)
            with pytest.raises(UnknownVersion):
                await draw(engine, version=VERSION.name)
        async with fleet(servers, quorum=0) as engine:
            await engine.load(VERSION)
        pair[1].ranks.clear()
        async with fleet(servers, quorum=1) as engine:
            with pytest.raises(UserError, match=r"2 of 3 servers serve .*, but 3 must"):
                await engine.load(VERSION)


@pytest.mark.parametrize(
    ("kind", "directory", "message"),
    [
        (VersionKind.ADAPTER, "/nowhere", "it cannot read /nowhere; mount data_dir"),
        (VersionKind.FULL, "/versions/1", "a fleet loads only adapters"),
        (VersionKind.BASE, "/versions/1", "a fleet loads only adapters"),
    ],
)
async def test_what_cannot_be_served_is_refused(
    pair: list[Double], kind: VersionKind, directory: str, message: str
) -> None:
    async with fleet(pair) as engine:
        with pytest.raises(UserError, match=message):
            await engine.load(VersionFiles("v", kind, Path(directory)))


async def test_a_version_that_answers_nan_is_refused(pair: list[Double]) -> None:
    for server in pair:
        server.nan.add(VERSION.name)
    async with fleet(pair) as engine:
        with pytest.raises(EngineError, match=r"0 of 2 servers serve|answered with status 500|finite"):
            await engine.load(VERSION)


async def test_a_server_that_restarts_gets_its_versions_back(pair: list[Double]) -> None:
    async with fleet(pair) as engine:
        await engine.load(VERSION)
        await asyncio.to_thread(pair[0].stop)
        for _ in range(5):
            await draw(engine, version=VERSION.name)
        pair[0].requests.clear()
        await asyncio.to_thread(pair[0].start)
        while not pair[0].draws:
            await draw(engine, version=VERSION.name)
        assert pair[0].adapters == {VERSION.name: "/versions/ab12"}
        assert pair[0].loads.count(VERSION.name) == 2


async def test_a_draw_that_finds_its_version_gone_brings_it_back(pair: list[Double]) -> None:
    async with fleet(pair[:1], health_interval=60) as engine:
        await engine.load(VERSION)
        pair[0].adapters.clear()
        await draw(engine, version=VERSION.name)
        assert pair[0].loads.count(VERSION.name) == 2


# Tools


@pytest.mark.parametrize("deltas", [False, True])
async def test_tools_go_to_every_draw_and_calls_come_back(pair: list[Double], deltas: bool) -> None:
    pair[0].tool_call = {"name": "get_order", "arguments": '{"id": 7}'}
    messages: Any = (
        {"role": "user", "content": "Where is order 6?"},
        {"role": "assistant", "content": "", "tool_calls": [ToolCall("c1", "get_order", '{"id": 6}').to_dict()]},
        {"role": "tool", "content": "shipped", "tool_call_id": "c1"},
        {"role": "user", "content": "And order 7?"},
    )
    async with fleet(pair[:1]) as engine:
        draws = await draw(engine, Prompt(messages, tools=TOOLS, tool_choice='"auto"'), n=2, deltas=deltas)
    [asked] = pair[0].draws
    assert asked["tools"] == json.loads(TOOLS)
    assert asked["tool_choice"] == "auto"
    assert asked["messages"][1]["content"] is None
    assert asked["messages"][1]["tool_calls"][0]["function"] == {"name": "get_order", "arguments": '{"id": 6}'}
    assert asked["messages"][2] == messages[2]
    for index, one in enumerate(draws.draws):
        assert one.tool_calls == [ToolCall(f"call-{index}", "get_order", '{"id": 7}')]
        assert (one.text, one.finish_reason) == ("", "stop")
        assert one.written == '<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call>'
        assert len(one.token_ids) == len(one.logprobs) > 0


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "urls"),
        ({"urls": []}, "urls"),
        ({"urls": ["ftp://x"]}, "ftp://x"),
        ({"urls": ["http://me:pass@x"]}, "api_key_env"),
        ({"urls": ["http://x", "http://x/v1"]}, "listed twice"),
        ({"urls": ["http://x"], "quorum": 2}, "quorum"),
        ({"urls": ["http://x"], "quorom": 1}, "quorom"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_engine(Settings(engine="remote", engine_options=options), base="base")


@pytest.mark.parametrize(
    "options", [{"urls": ["http://me:hunter2@x"]}, {"api_key": ["hunter2"]}, {"api_kye": "hunter2"}]
)
def test_a_secret_is_never_shown(options: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        build_engine(Settings(engine="remote", engine_options={"urls": ["http://x"]} | options), base="base")
    assert "hunter2" not in str(refused.value)


def test_urls_may_come_as_one_text() -> None:
    assert RemoteOptions.model_validate({"urls": "http://a:1/v1, http://b:2/"}).urls == ("http://a:1", "http://b:2")


async def test_must_be_started() -> None:
    engine = build_engine(Settings(engine="remote", engine_options={"urls": ["http://x"]}), base="base")
    with pytest.raises(EngineError, match="not started"):
        await engine.check()
