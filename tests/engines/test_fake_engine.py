"""Tests that the fake engine satisfies the contract of engines, so that tests can rely on it."""

import asyncio

import pytest

from bonbon.engines.candidates import collect
from bonbon.engines.engine import Delta, DrawRequest, Sampling, Started
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import EngineError
from bonbon.prompt import Prompt

PROMPT = Prompt.user("where is my order")


@pytest.fixture
async def engine() -> FakeEngine:
    engine = FakeEngine(context_length=64)
    await engine.start()
    return engine


async def test_closing_frees_the_candidates(engine: FakeEngine) -> None:
    stream = engine.draw(DrawRequest(PROMPT, "fake", 3, Sampling(seed=1, max_tokens=20)))
    assert isinstance(await anext(stream), Started)
    assert isinstance(await anext(stream), Delta)
    assert engine.running == 3
    await stream.aclose()
    assert engine.running == 0


async def test_a_failure_reaches_draws_and_checks() -> None:
    engine = FakeEngine(delay=0.01)
    await engine.start()
    running = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "fake", 1, Sampling(seed=3, max_tokens=50))))
    await engine.check()
    await asyncio.sleep(0)
    engine.failure = "out of memory"
    with pytest.raises(EngineError, match="out of memory"):
        await running
    with pytest.raises(EngineError, match="out of memory"):
        await engine.check()
    await engine.stop()
    assert await engine.loaded() == frozenset()
