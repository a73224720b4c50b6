import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from bonbon import Answer, BestOfN, Candidate, Prompt, Sampling
from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import EngineError, PromptTooLong, RewardError, UnknownVersion
from bonbon.pairs.group_records import Group, Unclean
from bonbon.pairs.ranking import rank, why_unclean
from bonbon.rewards.fake_reward import FakeReward, digest_score
from bonbon.theory import best_of_n_win_rate, clustered_mean, win_fraction

PROMPT = Prompt.user("Where is my order?")
SAMPLING = Sampling(max_tokens=24)


@pytest.fixture
async def engine() -> FakeEngine:
    engine = FakeEngine()
    await engine.start()
    return engine


class Answers(FakeReward):
    """Gives what it is told, whatever that is."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def by_rank(group: Group) -> list[Candidate]:
    return sorted(group.candidates, key=lambda c: -(c.rank or 0))


async def test_answers_with_the_best(engine: FakeEngine) -> None:
    answer = await BestOfN(engine, FakeReward())(PROMPT, 8, sampling=SAMPLING)
    group = answer.group
    assert group.n == 8
    scores = [digest_score(PROMPT, candidate.text) for candidate in group.candidates]
    assert [candidate.reward for candidate in group.candidates] == scores
    assert answer.text == group.candidates[scores.index(max(scores))].text
    assert [candidate.served for candidate in group.candidates].count(True) == 1
    assert group.worst.reward == min(scores)
    assert (group.degraded, group.unclean) == (None, None)
    assert (group.version, group.reward_name, group.reward_version) == ("fake", "fake", "1")
    assert group.prompt_token_ids == (5, 2, 2, 6)
    assert [draw.text for draw in answer.draws] == [candidate.text for candidate in group.candidates]
    for draw, candidate in zip(answer.draws, group.candidates, strict=True):
        assert candidate.token_ids == tuple(draw.token_ids)
        assert candidate.logprob == pytest.approx(len(draw.token_ids) * -math.log(13))


async def test_the_same_seed_gives_the_same_group(engine: FakeEngine) -> None:
    tied = FakeReward(lambda prompt, text: 0.0)

    async def once(seed: int | None) -> list[tuple[str, int | None]]:
        answer = await BestOfN(engine, tied)(PROMPT, 8, sampling=replace(SAMPLING, seed=seed))
        return [(candidate.text, candidate.rank) for candidate in answer.group.candidates]

    assert await once(5) == await once(5)
    assert await once(5) != await once(6)
    assert await once(None) != await once(None)


async def test_identical_candidates_are_scored_once(engine: FakeEngine) -> None:
    reward = FakeReward()
    answer = await BestOfN(engine, reward)(PROMPT, 24, sampling=Sampling(max_tokens=1, seed=1))
    texts = [candidate.text for candidate in answer.group.candidates]
    [scored] = reward.calls
    assert len(set(texts)) < len(texts)
    assert scored == tuple(dict.fromkeys(texts))
    assert len({(candidate.text, candidate.reward) for candidate in answer.group.candidates}) == len(scored)


async def test_keeps_the_best_k_best_first(engine: FakeEngine) -> None:
    group = (await BestOfN(engine, FakeReward())(PROMPT, 8, sampling=SAMPLING, keep=3)).group
    assert group.served == tuple(by_rank(group)[:3])
    rewards = [candidate.reward or 0.0 for candidate in group.served]
    assert rewards == sorted(rewards, reverse=True)


async def test_token_ids_reach_the_reward_as_text(engine: FakeEngine) -> None:
    seen: list[Prompt] = []

    def score(prompt: Prompt, text: str) -> float:
        seen.append(prompt)
        return digest_score(prompt, text)

    prompt = Prompt(token_ids=(0, 3))
    group = (await BestOfN(engine, FakeReward(score))(prompt, 2, sampling=SAMPLING)).group
    assert set(seen) == {Prompt(text="please order")}
    assert group.prompt == prompt


# Streams


async def test_streaming_yields_the_deltas_of_every_candidate_and_then_the_answer(engine: FakeEngine) -> None:
    sampling = replace(SAMPLING, seed=3)
    best_of_n = BestOfN(engine, FakeReward())
    request = DrawRequest(PROMPT, engine.base, 4, sampling, deltas=True)
    started, *deltas, answer = [event async for event in best_of_n.stream(request, keep=2)]
    assert isinstance(started, Started)
    assert isinstance(answer, Answer)
    texts = [""] * 4
    for delta in deltas:
        assert isinstance(delta, Delta)
        texts[delta.index] += delta.text
    assert texts == [candidate.text for candidate in answer.group.candidates]
    called = await best_of_n(PROMPT, 4, sampling=sampling, keep=2)
    assert called.group == replace(answer.group, id=called.group.id, time=called.group.time)


async def test_closing_a_stream_aborts_the_candidates(engine: FakeEngine) -> None:
    reward = FakeReward()
    stream = BestOfN(engine, reward).stream(DrawRequest(PROMPT, engine.base, 4, SAMPLING))
    assert isinstance(await anext(stream), Started)
    assert engine.running == 4
    await stream.aclose()
    assert engine.running == 0
    assert reward.calls == []


async def test_max_tokens_is_reduced_to_the_free_space_only_where_it_may_be() -> None:
    engine = FakeEngine(context_length=20)
    async with BestOfN(engine, FakeReward()) as best_of_n:
        sampling = Sampling(max_tokens=24, seed=1)
        request = DrawRequest(PROMPT, engine.base, 2, sampling)
        with pytest.raises(PromptTooLong):
            await anext(best_of_n.stream(request))
        *_, answer = [event async for event in best_of_n.stream(request, fit=True)]
        assert isinstance(answer, Answer)
        assert answer.group.sampling == replace(sampling, max_tokens=16)
        full = replace(request, prompt=Prompt(text="word " * 20))
        with pytest.raises(PromptTooLong):
            await anext(best_of_n.stream(full, fit=True))


# A reward that fails


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (RewardError("the service is down"), "^the service is down$"),
        (ZeroDivisionError("division by zero"), "reward fake failed: ZeroDivisionError: division by zero"),
        (TimeoutError("in a library"), "reward fake failed: TimeoutError: in a library"),
        ([1.0, math.nan, 2.0, 3.0], "one finite score per candidate"),
        ([1.0, math.inf, 2.0, 3.0], "one finite score per candidate"),
        ([1.0, 2.0, 3.0], "one finite score per candidate"),
        ([], "one finite score per candidate"),
        ([1.0, None, 2.0, 3.0], "reward fake failed: TypeError"),
        (["high", "low", "low", "low"], "reward fake failed: ValueError"),
        (None, "reward fake failed: TypeError"),
    ],
)
async def test_a_failing_reward_degrades_the_answer(engine: FakeEngine, answer: object, why: str) -> None:
    sampling = replace(SAMPLING, seed=2)
    group = (await BestOfN(engine, Answers(answer))(PROMPT, 4, sampling=sampling, keep=2)).group
    assert group.degraded is not None
    assert re.search(why, group.degraded)
    assert group.unclean is Unclean.DEGRADED
    assert [candidate.index for candidate in group.served] == [0, 1]
    assert {(c.reward, c.rank, c.win_probability) for c in group.candidates} == {(None, None, None)}


async def test_a_late_reward_degrades_the_answer_and_is_cancelled(engine: FakeEngine) -> None:
    cancelled = asyncio.Event()

    class Hangs(FakeReward):
        async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return []

    began = asyncio.get_running_loop().time()
    answer = await BestOfN(engine, Hangs(), deadline=0.05)(PROMPT, 4, sampling=SAMPLING)
    assert asyncio.get_running_loop().time() - began < 5
    assert answer.group.degraded == "reward fake did not score within 0.05 s"
    assert answer.text == answer.draws[0].text
    assert cancelled.is_set()


async def test_the_engines_failures_are_the_callers(engine: FakeEngine) -> None:
    best_of_n = BestOfN(engine, FakeReward())
    with pytest.raises(UnknownVersion):
        await best_of_n(PROMPT, 2, version="nope")
    with pytest.raises(PromptTooLong):
        await best_of_n(PROMPT, 2, sampling=Sampling(max_tokens=4096))
    engine.failure = "out of memory"
    with pytest.raises(EngineError, match="out of memory"):
        await best_of_n(PROMPT, 2)


# What is never trained on


async def test_unclean_groups(engine: FakeEngine) -> None:
    reward = FakeReward()
    best_of_n = BestOfN(engine, reward)

    async def unclean(n: int = 4, **sampling: float) -> Unclean | None:
        return (await best_of_n(PROMPT, n, sampling=replace(SAMPLING, **sampling))).group.unclean  # type: ignore[arg-type]

    assert await unclean() is None
    assert await unclean(temperature=0.7) is None
    assert await unclean(n=1) is Unclean.SINGLE
    assert await unclean(top_p=0.9) is Unclean.SAMPLING
    assert await unclean(top_k=20) is Unclean.SAMPLING
    assert await unclean(temperature=0.0) is Unclean.SAMPLING
    reward.function = lambda prompt, text: 1.0
    assert await unclean() is Unclean.TIED


async def test_a_single_draw_is_not_scored(engine: FakeEngine) -> None:
    reward = FakeReward()
    group = (await BestOfN(engine, reward)(PROMPT, 1, sampling=SAMPLING)).group
    assert reward.calls == []
    assert (group.degraded, group.served[0].reward) == (None, None)


async def test_an_aborted_candidate_makes_the_group_unclean(engine: FakeEngine) -> None:
    group = (await BestOfN(engine, FakeReward())(PROMPT, 4, sampling=SAMPLING)).group
    aborted = replace(group.candidates[1], finish_reason="abort")
    assert why_unclean(replace(group, candidates=(group.candidates[0], aborted))) is Unclean.ABORTED


# Ranks


def candidates(n: int) -> tuple[Candidate, ...]:
    return tuple(Candidate(i, f"reply {i}", (i,), -1.0, "stop") for i in range(n))


REWARDS = st.lists(st.integers(0, 4).map(float), min_size=2, max_size=10)


@given(REWARDS, st.integers())
def test_ranks_follow_rewards(rewards: list[float], seed: int) -> None:
    n = len(rewards)
    ranked = rank(candidates(n), rewards, random.Random(seed))
    assert sorted(c.rank or 0 for c in ranked) == list(range(1, n + 1))
    assert [c.reward for c in ranked] == rewards
    for a in ranked:
        below = sum(reward < (a.reward or 0) for reward in rewards)
        ties = rewards.count(a.reward or 0)
        assert below < (a.rank or 0) <= below + ties
        assert a.win_probability == pytest.approx((below + (ties + 1) / 2) / (n + 1))


def test_ties_are_broken_uniformly() -> None:
    """All 24 orders of four tied candidates alike often: chi-square at the .1 % level, seed 7."""
    rng = random.Random(7)
    counts = Counter(tuple(c.rank for c in rank(candidates(4), [2.0] * 4, rng)) for _ in range(12_000))
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 0.001


def test_the_best_of_tied_ones_is_not_the_first() -> None:
    """Two of five tie for the best: each wins about half, within 4.4 standard errors (error rate 1e-5), seed 8."""
    rng = random.Random(8)
    wins = Counter(max(rank(candidates(5), [1, 3, 0, 3, 2], rng), key=lambda c: c.rank or 0).index for _ in range(4000))
    assert set(wins) == {1, 3}
    assert abs(wins[1] / 4000 - 0.5) < 4.4 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("n", [2, 8])
async def test_win_rate_against_the_base(engine: FakeEngine, n: int) -> None:
    """n / (n + 1), when rewards are continuous and candidates do not repeat.

    500 prompts, best-of-n against 8 fresh draws each; the fixed seeds make it deterministic, and other seeds would
    fall outside 4 standard errors with probability 6e-5. Replies of at least 6 words hardly ever tie, and those that
    repeat a text cost at most half their probability.
    """
    reward = FakeReward(lambda prompt, text: digest_score(prompt, f"{prompt.text} {text}"))
    best_of_n = BestOfN(engine, reward)
    shares = []
    for i in range(500):
        prompt = Prompt(text=f"question {i}")
        best = (await best_of_n(prompt, n, sampling=Sampling(max_tokens=64, seed=i))).group
        base = (await best_of_n(prompt, 8, sampling=Sampling(max_tokens=64, seed=10_000 + i))).group
        shares.append(win_fraction([best.best.reward or 0.0], [c.reward or 0.0 for c in base.candidates]))
    estimate = clustered_mean(shares, 4000)
    se = (estimate.high - estimate.low) / (2 * 1.959964)
    assert abs(estimate.value - best_of_n_win_rate(n)) < 4 * se
    assert se < 0.015
