"""Tests that the fake engine satisfies the contract of engines, so that tests can rely on it."""

import asyncio
from pathlib import Path

import pytest

from bonbon.engines.candidates import collect
from bonbon.engines.engine import Delta, DrawRequest, Sampling, Started, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import EngineError, PromptTooLong, UnknownVersion
from bonbon.prompt import Prompt

PROMPT = Prompt.user("where is my order")


@pytest.fixture
async def engine() -> FakeEngine:
    engine = FakeEngine(context_length=64)
    await engine.start()
    return engine


async def test_candidates_are_whole_and_seeded(engine: FakeEngine) -> None:
    request = DrawRequest(PROMPT, "fake", 5, Sampling(max_tokens=30, seed=1, top_logprobs=2))
    draws = await collect(engine, request)
    for draw in draws.draws:
        assert draw.finish_reason in ("stop", "length")
        assert len(draw.token_ids) == len(draw.logprobs) == len(draw.tokens) == len(draw.alternatives)
        assert b"".join(token.utf8 or b"" for token in draw.tokens).decode() == draw.text
    assert len({draw.text for draw in draws.draws}) > 1
    assert await collect(engine, request) == draws
    other = await collect(engine, DrawRequest(PROMPT, "fake", 5, Sampling(max_tokens=30, seed=2)))
    assert [draw.text for draw in other.draws] != [draw.text for draw in draws.draws]


async def test_greedy_candidates_are_alike(engine: FakeEngine) -> None:
    draws = await collect(engine, DrawRequest(PROMPT, "fake", 3, Sampling(temperature=0, max_tokens=20)))
    assert len({draw.text for draw in draws.draws}) == 1
    assert draws.draws[0].finish_reason == "stop"


async def test_max_tokens_and_stop_strings_end_a_candidate(engine: FakeEngine) -> None:
    cut = (await collect(engine, DrawRequest(PROMPT, "fake", 1, Sampling(temperature=0, max_tokens=2)))).draws[0]
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 2)
    stopping = Sampling(temperature=0, max_tokens=20, stop=(" please",))
    stopped = (await collect(engine, DrawRequest(PROMPT, "fake", 1, stopping))).draws[0]
    assert (stopped.finish_reason, stopped.text) == ("stop", "please")


async def test_versions_are_loaded_and_unloaded(engine: FakeEngine) -> None:
    await engine.load(VersionFiles("new", VersionKind.ADAPTER, Path("nowhere")))
    assert await engine.loaded() == {"fake", "new"}
    await collect(engine, DrawRequest(PROMPT, "new", 1, Sampling(max_tokens=2)))
    await engine.unload("new")
    with pytest.raises(UnknownVersion):
        await collect(engine, DrawRequest(PROMPT, "new"))


async def test_too_long_is_refused_before_anything_is_drawn(engine: FakeEngine) -> None:
    with pytest.raises(PromptTooLong, match="4 in the messages, 61 in the completion"):
        await collect(engine, DrawRequest(PROMPT, "fake", 1, Sampling(max_tokens=61)))
    assert engine.running == 0


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
