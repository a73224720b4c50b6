"""Tests the golden prompts: which faults keep an engine from being served."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from bonbon.engines.engine import Delta, DrawRequest, Started, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.engines.golden_prompts import MAX_LOGPROB_GAP, MAX_PROMPT_TOKENS, check_base, check_golden_prompts
from bonbon.errors import EngineError, UserError
from tests.support.service.running_service import BASE

Spoil = Callable[["Watched", DrawRequest, Delta], Delta]


class Watched(FakeEngine):
    """A fake engine whose deltas `spoil` may change. It records its requests, and how many ran concurrently."""

    def __init__(self, spoil: Spoil = lambda engine, request, delta: delta, **options: Any) -> None:
        super().__init__(BASE, **options)
        self.spoil = spoil
        self.lengths: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self.requests = 0

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        self.requests += 1
        try:
            async for event in super().draw(replace(request, deltas=True)):
                if isinstance(event, Started):
                    self.lengths.append(len(event.token_ids))
                    self.asked.append((request.version, self.requests))
                    yield event
                else:
                    yield self.spoil(self, request, event)
        finally:
            self.requests -= 1


async def started(engine: Watched) -> Watched:
    await engine.start()
    await engine.load(VersionFiles("learnt", VersionKind.ADAPTER, Path("learnt")))
    return engine


@pytest.mark.parametrize(("context", "longest"), [(512, 504), (10**6, MAX_PROMPT_TOKENS - 8)])
async def test_the_base_is_asked_alone_and_at_once_short_and_at_the_contexts_end(context: int, longest: int) -> None:
    engine = await started(Watched(context_length=context))
    await check_base(engine)
    assert max(engine.lengths) == longest
    assert engine.lengths.count(longest) == 2
    assert {version for version, _ in engine.asked} == {BASE}
    assert max(together for _, together in engine.asked) == 4


class Slow(Watched):
    """A fake engine on whose clock reading L tokens takes `constant` L + `growth` L^2 seconds."""

    def __init__(self, constant: float, growth: float) -> None:
        super().__init__(context_length=10**6)
        self.constant, self.growth, self.now = constant, growth, 0.0

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        async for event in super().draw(request):
            if isinstance(event, Started):
                length = len(event.token_ids)
                self.now += length * (self.constant + length * self.growth)
            yield event


@pytest.mark.parametrize(
    ("constant", "growth", "tokens"),
    [(1e-4, 0.0, MAX_PROMPT_TOKENS - 8), (0.002, 0.0, 2500), (0.002, 1e-6, 1449), (0.05, 0.0, 100), (1.0, 0.0, 64)],
)
async def test_the_long_prompt_is_as_long_as_the_engine_reads_in_time(
    constant: float, growth: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Slow(constant, growth)
    monkeypatch.setattr("bonbon.engines.golden_prompts.time.perf_counter", lambda: engine.now)
    await started(engine)
    await check_base(engine)
    assert max(engine.lengths) == pytest.approx(tokens, rel=0.01)
    assert engine.lengths.count(max(engine.lengths)) >= 2, "once alone, and once in a batch"


async def test_a_version_is_asked_alone_and_beside_the_base() -> None:
    engine = await started(Watched())
    await check_golden_prompts(engine, "learnt")
    assert {version for version, together in engine.asked if together == 2} | {"learnt"} == {BASE, "learnt"}
    assert ("learnt", 1) in engine.asked


def only(condition: Callable[[Watched, DrawRequest], bool], **changes: object) -> Spoil:
    def spoil(engine: Watched, request: DrawRequest, delta: Delta) -> Delta:
        return replace(delta, **changes) if condition(engine, request) else delta  # type: ignore[arg-type]

    return spoil


FAULTS: dict[str, tuple[Spoil, str]] = {
    "no number": (only(lambda engine, request: True, logprobs=(nan,)), "not finite"),
    "no number in a batch": (only(lambda engine, request: engine.requests > 1, logprobs=(-inf,)), "not finite"),
    "another distribution in a batch": (
        only(lambda engine, request: engine.requests > 1, logprobs=(-3.0,)),
        "nats per token between",
    ),
    "no token": (only(lambda engine, request: True, token_ids=(), logprobs=(), tokens=()), "was not answered"),
    "cut off": (only(lambda engine, request: True, finish_reason="abort"), "was not answered"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_cannot_be_logged_is_refused(fault: str) -> None:
    spoil, message = FAULTS[fault]
    engine = await started(Watched(spoil))
    with pytest.raises(EngineError, match=message):
        await check_base(engine)
    with pytest.raises(EngineError, match=message):
        await check_golden_prompts(engine, "learnt")


async def test_a_fault_at_the_contexts_end_is_found() -> None:
    def spoil(engine: Watched, request: DrawRequest, delta: Delta) -> Delta:
        if len(request.prompt.token_ids or ()) > 400:
            raise EngineError("index out of range")
        return delta

    engine = await started(Watched(spoil, context_length=512))
    with pytest.raises(EngineError, match="index out of range"):
        await check_base(engine)


async def test_differences_that_training_allows_are_none() -> None:
    def spoil(engine: Watched, request: DrawRequest, delta: Delta) -> Delta:
        shift = 0.9 * MAX_LOGPROB_GAP if engine.requests > 1 else 0.0
        return replace(delta, logprobs=tuple(logprob - shift for logprob in delta.logprobs))

    await check_base(await started(Watched(spoil)))


async def test_prompts_that_do_not_fit_into_the_context_are_left_out() -> None:
    await check_base(await started(Watched(context_length=18)))
    with pytest.raises(UserError, match="maximum context length is 8 tokens"):
        await check_base(await started(Watched(context_length=8)))


async def test_an_engine_that_does_not_answer_is_not_waited_for() -> None:
    engine = await started(Watched(delay=60))
    with pytest.raises(EngineError, match=r"did not answer .* within 0\.05 s"):
        await check_base(engine, deadline=0.05)
