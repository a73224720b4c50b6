"""The service on a fleet of vLLM servers: start, several gateways, tools, and hidden control endpoints."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bonbon.pairs.group_records import Unclean
from bonbon.pairs.reading.pair_export import export
from bonbon.registry.registry import Registry
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import ServiceSettings, Settings
from bonbon.store.database import open_database
from service.app import create_app
from tests.support.servers.vllm_double import Double, doubles
from tests.support.service.api import CHAT, MESSAGES, events
from tests.support.service.hosting import in_process
from tests.support.service.running_service import Running, new_version, version_name

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_order", "parameters": {"type": "object", "properties": {}}}}
]
NAMED = {"type": "function", "function": {"name": "get_order"}}


@pytest.fixture
def pair() -> Iterator[list[Double]]:
    with doubles(2) as made:
        yield made


@asynccontextmanager
async def gateway(directory: Path, servers: list[Double]) -> AsyncIterator[Running]:
    settings = Settings(
        model="org/tiny",
        engine="remote",
        engine_options={"urls": [server.url for server in servers], "health_interval": 0.05},
        n=4,
        data_dir=directory,
        service=ServiceSettings(registry_poll=0.02, audit_fraction=0, drain_timeout=5, default_max_tokens=8),
    )
    app = create_app(settings, reward=FakeReward())
    async with in_process(app) as client:
        yield Running(app, app.state.bonbon, client)


async def ready(running: Running) -> dict[str, Any]:
    response = await running.client.get("/health/ready")
    body: dict[str, Any] = response.json()
    assert (response.status_code == 200) == (body["status"] == "ready")
    return body


async def serving(running: Running, version: str) -> None:
    while running.state.router.champion != version:
        await asyncio.sleep(0.01)


async def test_a_fleet_that_comes_late_is_served_from_without_a_hand(tmp_path: Path, pair: list[Double]) -> None:
    async with gateway(tmp_path, pair) as before:
        version = await new_version(before.state.registry, 7, base="tiny")
        await before.state.registry.promote(version.name, actor="test", force=True)
        await serving(before, version.name)
    for server in pair:
        server.stop()
    async with gateway(tmp_path, pair) as running:
        state = await ready(running)
        assert "no server of the fleet is available" in state["reason"]
        assert pair[1].url in state["reason"]
        response = await running.ask()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert pair[0].url not in response.text
        for server in pair:
            server.start()
        await serving(running, version.name)
        assert (await ready(running))["champion"] == version.name
        assert (await running.ask()).json()["bonbon"]["version"] == version.name


async def test_gateways_of_one_registry_converge_and_swap_without_failures(tmp_path: Path, pair: list[Double]) -> None:
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(gateway(tmp_path, pair)) for _ in range(2)]
        statuses: list[int] = []
        stop = asyncio.Event()

        async def ask(running: Running) -> None:
            while not stop.is_set():
                statuses.append((await running.ask()).status_code)

        asking = [asyncio.create_task(ask(running)) for running in gateways * 2]
        for weights in (1, 2, 3):
            version = await new_version(gateways[0].state.registry, weights, base="tiny")
            await gateways[0].state.registry.promote(version.name, actor="test", force=True)
            for running in gateways:
                await serving(running, version.name)
            assert all(version.name in server.adapters for server in pair)
        stop.set()
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
        first = version_name(1, 1, base="tiny")
        while any(first in server.adapters for server in pair):  # neither champion nor previous any more
            await asyncio.sleep(0.01)


async def test_a_version_that_the_fleet_refuses_leaves_the_champion(tmp_path: Path, pair: list[Double]) -> None:
    async with gateway(tmp_path, pair) as running:
        version = await new_version(running.state.registry, 1, base="tiny")
        pair[0].ranks[version.name] = 64
        await running.state.registry.promote(version.name, actor="test", force=True)
        while version.name not in running.state.swapper.refused:
            await asyncio.sleep(0.01)
        state = await ready(running)
        assert (state["champion"], state["serving"]) == (version.name, "tiny")
        assert "LoRA rank 64 is greater than max_lora_rank 8" in state["refused"][version.name]
        assert "--max-lora-rank" in state["refused"][version.name]
        assert (await running.ask()).json()["bonbon"]["version"] == "tiny"


@pytest.mark.parametrize("path", ["load_lora_adapter", "unload_lora_adapter", "pause", "sleep", "update_weights"])
async def test_no_control_endpoint_is_passed_on(tmp_path: Path, pair: list[Double], path: str) -> None:
    async with gateway(tmp_path, pair) as running:
        for prefix in ("/v1/", "/"):
            response = await running.client.post(prefix + path, json={"lora_name": "x", "lora_path": "/x"})
            assert response.status_code == 404
        assert [server.adapters for server in pair] == [{}, {}]


@pytest.mark.parametrize(("best_of", "model"), [(4, "bonbon"), (1, "base")])
async def test_tool_calls_come_back_whole_and_streamed(
    tmp_path: Path, pair: list[Double], best_of: int, model: str
) -> None:
    for server in pair:
        server.tool_call = {"name": "get_order", "arguments": '{"id": 7}'}
    body = {"model": model, "messages": MESSAGES, "tools": TOOLS, "seed": 1, "best_of": best_of}
    async with gateway(tmp_path, pair) as running:
        whole = (await running.client.post(CHAT, json=body)).json()
        streamed, _ = events((await running.client.post(CHAT, json=body | {"stream": True})).text)
    [choice] = whole["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "get_order", "arguments": '{"id": 7}'})
    calls = [c for chunk in streamed for ch in chunk["choices"] for c in ch["delta"].get("tool_calls", [])]
    assert calls == [{"index": 0, **call}]
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("model", ["bonbon", "base"])
async def test_responses_go_the_way_of_chats(tmp_path: Path, pair: list[Double], model: str) -> None:
    for server in pair:
        server.tool_call = {"name": "get_order", "arguments": '{"id": 7}'}
    shape = {"name": "reply", "schema": {"type": "object"}}
    tool = {"type": "function", "name": "get_order", "parameters": {"type": "object", "properties": {}}}
    asked = {
        "model": model, "input": MESSAGES, "instructions": "Be kind.", "tools": [tool],
        "tool_choice": {"type": "function", "name": "get_order"}, "max_output_tokens": 6,
        "text": {"format": {"type": "json_schema", **shape}},
    }  # fmt: skip
    same = {
        "model": model, "messages": [{"role": "system", "content": "Be kind."}, *MESSAGES], "tools": TOOLS,
        "tool_choice": NAMED, "max_tokens": 6, "response_format": {"type": "json_schema", "json_schema": shape},
    }  # fmt: skip
    async with gateway(tmp_path, pair) as running:
        whole = (await running.client.post("/v1/responses", json=asked)).json()
        streamed = (await running.client.post("/v1/responses", json=asked | {"stream": True})).text
        await running.client.post(CHAT, json=same)
        drawn = [draw | {"stream": None} for server in pair for draw in server.draws]
        assert len(drawn) == 3
        assert drawn[1:] == drawn[:-1]
        refused = await running.client.post("/v1/responses", json={"model": model, "input": "word " * 80})
    assert [(item["name"], item["arguments"]) for item in whole["output"]] == [("get_order", '{"id": 7}')]
    assert '"type":"response.function_call_arguments.done"' in streamed
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")


async def test_parallel_tool_calls_may_be_switched_off(tmp_path: Path, pair: list[Double]) -> None:
    for server in pair:
        server.tool_call, server.parallel_calls = {"name": "get_order", "arguments": '{"id": 7}'}, 3
    async with gateway(tmp_path, pair) as running:
        for parallel, count in ((None, 3), (True, 3), (False, 1)):
            for model in ("bonbon", "base"):
                body = {"model": model, "messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": parallel}
                message = (await running.client.post(CHAT, json=body)).json()["choices"][0]["message"]
                assert len(message["tool_calls"]) == count
                streamed, _ = events((await running.client.post(CHAT, json=body | {"stream": True})).text)
                calls = [c for chunk in streamed for ch in chunk["choices"] for c in ch["delta"].get("tool_calls", [])]
                assert [call["index"] for call in calls] == list(range(count))


async def test_groups_with_tools_are_kept_and_those_that_were_forced_never_trained_on(
    tmp_path: Path, pair: list[Double]
) -> None:
    conversation = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function":
                                                               {"name": "get_order", "arguments": "{}"}}]},
        {"role": "tool", "content": "shipped", "tool_call_id": "c"},
    ]  # fmt: skip
    strict = [{"type": "function", "function": {"name": "get_order", "strict": True}}]
    asked: list[dict[str, Any]] = [
        {"messages": conversation, "tools": TOOLS},
        {"messages": conversation, "tools": TOOLS, "tool_choice": "auto"},
        {"messages": conversation, "tools": TOOLS, "tool_choice": "required"},
        {"messages": conversation, "tools": TOOLS, "tool_choice": NAMED},
        {"messages": conversation, "tools": strict},
        {"messages": conversation},
    ]
    async with gateway(tmp_path, pair) as running:
        groups = []
        for body in asked:
            response = await running.client.post(CHAT, json={"model": "bonbon", "seed": 1} | body)
            assert response.status_code == 200, response.text
            group = await running.state.pair_log.group(response.json()["bonbon"]["group_id"])
            assert group is not None
            groups.append(group)
        path = tmp_path / "pairs.jsonl"
        await export(running.state.database, path, "jsonl")
    forced = Unclean.SAMPLING
    assert [group.unclean for group in groups] == [None, None, forced, forced, forced, None]
    assert len({group.prompt.digest for group in groups}) == 5  # auto is what is meant without a choice
    assert json.loads(groups[3].prompt.tool_choice or "") == NAMED
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [json.loads(row["tools"] or "null") for row in rows] == [TOOLS, TOOLS, None]
    assert rows[0]["prompt"][1:] == [
        {"role": "assistant", "content": '<tool_call>{"name": "get_order", "arguments": {}}</tool_call>'},
        {"role": "tool", "content": "shipped"},
    ]


async def test_the_base_of_a_fleet_need_not_be_on_this_machine(tmp_path: Path, pair: list[Double]) -> None:
    async with gateway(tmp_path, pair) as running:
        assert (await running.ask()).json()["bonbon"]["version"] == "tiny"
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        base = await Registry(database, tmp_path / "versions").get("tiny")
    assert base.digest == ""
