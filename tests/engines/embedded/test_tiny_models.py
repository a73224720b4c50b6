"""Tests the included models: real formats, readable and diverse answers, and a reward that tells good from bad."""

import asyncio
from collections.abc import AsyncIterator
from statistics import mean

import pytest
import pytest_asyncio
from scipy.stats import spearmanr

from bonbon.best_of_n import Answer, BestOfN
from bonbon.demo import world
from bonbon.demo.tiny_models import TinyModels
from bonbon.engines import build_engine
from bonbon.engines.engine import Sampling
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec, Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")
REQUESTS = world.requests(99, 60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers(tiny_models: TinyModels) -> AsyncIterator[list[Answer]]:
    """Answers each request with the best of 8."""
    engine = build_engine(Settings(model=str(tiny_models.policy)), base="tiny")
    reward = build_reward(RewardSpec(kind="classifier", target=str(tiny_models.reward)))
    await engine.start()
    await reward.start()
    best_of_n = BestOfN(engine, reward)
    sampling = [Sampling(max_tokens=96, seed=seed) for seed in range(len(REQUESTS))]
    yield await asyncio.gather(
        *(best_of_n(Prompt.user(r), 8, sampling=s) for r, s in zip(REQUESTS, sampling, strict=True))
    )
    await reward.stop()
    await engine.stop()


async def test_replies_are_readable_and_end_by_themselves(answers: list[Answer]) -> None:
    candidates = [candidate for answer in answers for candidate in answer.group.candidates]
    assert mean(candidate.finish_reason == "stop" for candidate in candidates) >= 0.99
    assert 20 < mean(len(candidate.token_ids) for candidate in candidates) < 45
    sentences = [sentence for candidate in candidates for sentence in world.sentences(candidate.text)]
    assert mean(map(world.is_sentence, sentences)) > 0.97


async def test_best_of_8_almost_never_ties(answers: list[Answer]) -> None:
    tied = [
        sum(candidate.reward == answer.group.best.reward for candidate in answer.group.candidates) > 1
        for answer in answers
    ]
    assert mean(tied) <= 0.02
    assert all(answer.group.unclean is None for answer in answers)


async def test_the_reward_knows_good_from_bad(answers: list[Answer], tiny_models: TinyModels) -> None:
    held_out = build_reward(RewardSpec(kind="classifier", target=str(tiny_models.held_out_reward)))
    await held_out.start()
    gains, true_agreement, agreement = [], [], []
    for request, answer in zip(REQUESTS, answers, strict=True):
        group = answer.group
        rewards = [candidate.reward for candidate in group.candidates]
        qualities = [world.quality(request, candidate.text) for candidate in group.candidates]
        others = await held_out.score(group.prompt, [candidate.text for candidate in group.candidates])
        gains.append(world.quality(request, group.best.text) - mean(qualities))
        true_agreement.append(spearmanr(rewards, qualities).statistic)
        agreement.append(spearmanr(rewards, others).statistic)
    await held_out.stop()
    assert mean(gains) > 1
    assert mean(true_agreement) > 0.5
    assert 0.8 < mean(agreement) < 0.999
