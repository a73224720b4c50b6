"""Tests of the evaluation: its estimates against known distributions, and the inputs that it refuses."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bonbon.best_of_n import BestOfN
from bonbon.engines.engine import Delta, DrawRequest, Sampling, Started, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import EngineError, RewardError, UserError
from bonbon.pairs.reading.snapshot import Split
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import EvaluateSettings
from bonbon.theory import best_of_n_win_rate, objective_gain
from trainer.data.logged_prompts import LoggedPrompt
from trainer.evaluation import estimates
from trainer.evaluation.divergence import Completion, Divergence
from trainer.evaluation.evaluate import Served, evaluate
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.samples import choose

SAMPLING = Sampling(max_tokens=24)


def asked(text: str, sampling: Sampling = SAMPLING) -> LoggedPrompt:
    return LoggedPrompt(Prompt.user(text), sampling, Split.TEST, "", "")


PROMPTS = [asked(f"Where is order {number}?") for number in range(300)]
VERSION = VersionFiles("fake-bonbon-0002", VersionKind.ADAPTER, Path("unused"))
CHAMPION = VersionFiles("fake-bonbon-0001", VersionKind.ADAPTER, Path("unused"))
BASE_SERVES = Served(None, 8)


class Constant:
    """Reports that every completion is half a nat from the base, with its length as log ratio."""

    name = "constant"

    def __call__(self, completions: Sequence[Completion], advance: Callable[[int], None]) -> list[Divergence]:
        advance(len(completions))
        return [Divergence(0.5, len(one.tokens)) for one in completions]


class BestOfEngine(FakeEngine):
    """Answers for versions other than the base with the best of `n` draws of the base, by the default fake reward."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        if request.version == self.base:
            async for event in super().draw(request):
                yield event
            return
        for index in range(request.n):
            sampling = replace(request.sampling, seed=(request.sampling.seed or 0) + 7919 * (index + 1))
            answer = await BestOfN(_Base(self), FakeReward())(request.prompt, self.n, sampling=sampling)
            if index == 0:
                yield Started(answer.group.prompt_token_ids, "")
            best = answer.group.best
            yield Delta(
                index, best.text, best.token_ids, (0.0,) * len(best.token_ids), finish_reason=best.finish_reason
            )


class _Base(FakeEngine):
    """Serves the versions of another engine with the plain fake."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine.base)
        self._versions = {engine.base: None}


async def measure(engine: FakeEngine | None = None, **changes: object) -> Evaluation:
    arguments: dict[str, object] = {
        "engine": engine or FakeEngine(),
        "reward": FakeReward(),
        "held_out_reward": None,
        "divergence": Constant(),
        "prompts": PROMPTS,
        "version": VERSION,
        "served": BASE_SERVES,
        "n": 8,
        "settings": EvaluateSettings(prompts=120),
        "progress": False,
    }
    return await evaluate(**(arguments | changes))  # type: ignore[arg-type]


async def test_of_equal_policies_best_of_k_wins_as_the_theory_says() -> None:
    """Within four standard errors of 100 prompts; equal texts tie, which costs best-of-n at most half the ties."""
    reached: list[bool] = []
    for seed in range(4):
        result = await measure(seed=seed, settings=EvaluateSettings(prompts=100))
        reached.append(result.win_rate.low <= 0.5 <= result.win_rate.high)
        assert result.win_rate.high - result.win_rate.low < 0.2
        assert result.best_of_n_win_rate.value == pytest.approx(best_of_n_win_rate(8), abs=0.03)
        assert abs(result.recovered.value) < 0.25
        for one in result.best_of_k:
            assert one.win_rate.value == pytest.approx(one.k / (one.k + 1), abs=0.06)
            assert one.win_rate_served.value == pytest.approx(one.k / (one.k + 8), abs=0.08)
    assert sum(reached) >= 3


async def test_few_prompts_are_drawn_for_more_often_but_no_larger_k_is_measured() -> None:
    """With 50 prompts of at most 400, twice as many candidates are drawn, which narrows the interval."""
    few, all_ = [
        await measure(BestOfEngine(8), prompts=PROMPTS[:50], settings=EvaluateSettings(prompts=prompts))
        for prompts in (400, 50)
    ]
    assert (few.draws, all_.draws) == (16, 8)
    assert [one.k for one in few.best_of_k] == [one.k for one in all_.best_of_k] == list(range(1, 9))
    widths = [one.best_of_k[0].win_rate_best_of_n for one in (few, all_)]
    assert widths[0].high - widths[0].low < 0.85 * (widths[1].high - widths[1].low)
    assert few.best_of_k[0].win_rate_best_of_n.low <= 0.5 <= few.best_of_k[0].win_rate_best_of_n.high
    some = await measure(prompts=PROMPTS[:50], settings=EvaluateSettings(prompts=400, draws=3))
    assert (some.draws, len(some.best_of_k)) == (3, 3)


async def test_a_policy_that_is_best_of_n_recovers_all_of_its_gain() -> None:
    result = await measure(BestOfEngine(8), settings=EvaluateSettings(prompts=150, draws=2))
    assert result.win_rate.low <= best_of_n_win_rate(8) <= result.win_rate.high + 0.01
    one, two = result.best_of_k
    assert one.win_rate_served.low <= 0.5 <= one.win_rate_served.high
    assert two.win_rate_served.low <= 2 / 3 <= two.win_rate_served.high
    assert one.tokens == pytest.approx(result.length_mean.value)
    assert result.recovered.low <= 1 <= result.recovered.high
    assert result.reward_mean.value == pytest.approx(result.best_of_n_reward_mean.value, abs=0.03)
    # Only the fake estimator gives half a nat for that win rate.
    assert result.gain.value == pytest.approx(objective_gain(result.win_rate.value, 0.5, 8))


async def test_a_version_is_compared_with_the_version_that_is_served() -> None:
    """Both answer with the best of eight; the served version draws three times per answer."""
    result = await measure(BestOfEngine(8), served=Served(CHAMPION, 3), settings=EvaluateSettings(prompts=100, draws=4))
    assert (result.served, result.served_k) == (CHAMPION.name, 3)
    for one in result.best_of_k:
        assert one.win_rate_served.low <= one.k / (one.k + 3) <= one.win_rate_served.high
    assert result.served_tokens == pytest.approx(3 * result.length_mean.value, rel=0.2)


async def test_what_is_served_may_draw_more_often_than_the_version_is_measured_with() -> None:
    result = await measure(served=Served(CHAMPION, 5), settings=EvaluateSettings(prompts=60, draws=2))
    assert [one.k for one in result.best_of_k] == [1, 2]
    assert result.best_of_k[0].win_rate_served.value == pytest.approx(1 / 6, abs=0.08)


async def test_the_interval_of_the_win_rate_holds_its_error_rate() -> None:
    rng = np.random.default_rng(0)
    prompts, answers, n, runs = 30, 2, 16, 600
    missed = 0
    for _ in range(runs):
        ours, base = rng.random((prompts, answers)), rng.random((prompts, n))
        shares = (ours[:, :, None] > base[:, None, :]).mean(axis=(1, 2))
        estimate = estimates.win_rate(shares.tolist(), prompts * answers * n)
        missed += not estimate.low <= 0.5 <= estimate.high
    assert stats.binom.cdf(missed, runs, 0.05) < 0.999
    assert stats.binom.sf(missed - 1, runs, 0.03) < 0.999


def test_a_win_rate_without_variance_is_not_certain() -> None:
    estimate = estimates.win_rate([1.0] * 10, 40)
    assert estimate.value == 1
    assert estimate.low == pytest.approx(0.722, abs=1e-3)
    assert estimate.high == pytest.approx(1)


def test_distinct_counts_token_ngrams_within_answers() -> None:
    answers = [(1, 2, 1, 2), (1, 2)]
    assert estimates.distinct(answers, 1) == 2 / 6
    assert estimates.distinct(answers, 2) == 2 / 4
    assert math.isnan(estimates.distinct([(1,)], 2))


async def test_counts_lengths_and_divergences_are_reported() -> None:
    result = await measure(held_out_reward=FakeReward(lambda prompt, text: len(text)))
    assert (result.prompts, result.skipped, result.draws, result.n) == (120, 0, 8, 8)
    assert (result.version, result.base, result.served, result.served_k) == (VERSION.name, "fake", "fake", 8)
    assert (result.temperature, result.max_tokens) == (1.0, 24)
    assert result.win_rate.count == 120 * 8 * 32
    assert result.win_rate.clusters == len(result.win_rate_shares) == 120
    assert result.win_rate.value == pytest.approx(np.mean(result.win_rate_shares))
    assert result.held_out_win_rate is not None
    assert result.held_out_win_rate.low <= 0.5 <= result.held_out_win_rate.high
    assert all(one.held_out_win_rate_served is not None for one in result.best_of_k)
    assert result.kl.value == 0.5
    assert result.kl.count == 120 * 2
    assert result.kl_k1.value == pytest.approx(result.length_mean.value, rel=0.1)
    assert result.gain.value == pytest.approx(objective_gain(result.win_rate.value, 0.5, 8))
    assert result.length_ratio.low <= 1 <= result.length_ratio.high
    assert [one.tokens for one in result.best_of_k] == pytest.approx(
        [k * result.length_mean.value for k in range(1, 9)]
    )
    assert result.served_tokens == pytest.approx(8 * result.base_length_mean.value)
    # One draw in thirteen stops: (12/13)^24 of them reach 24 tokens.
    assert result.base_truncated == pytest.approx((12 / 13) ** 24, abs=0.03)
    assert 0.8 < result.distinct_2_ratio < 1.2


async def test_the_same_seed_measures_the_same_and_survives_json(tmp_path: Path) -> None:
    held_out = FakeReward(lambda prompt, text: len(text))
    settings = EvaluateSettings(prompts=40)
    first, second = [await measure(seed=3, settings=settings, held_out_reward=held_out) for _ in range(2)]
    first.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert loaded == first
    assert {**first.to_dict(), "seconds": 0} == {**second.to_dict(), "seconds": 0}


@pytest.mark.parametrize("field", ["kl_estimator", "best_of_k", "served_k"])
async def test_an_evaluation_of_another_release_is_refused_with_what_to_do(field: str) -> None:
    stored = (await measure(settings=EvaluateSettings(prompts=4))).to_dict()
    with pytest.raises(UserError, match=f"no field '{field}'.*run `bonbon evaluate`"):
        Evaluation.from_dict({key: value for key, value in stored.items() if key != field})


async def test_prompts_whose_answers_all_tie_count_as_half() -> None:
    """Leaving these prompts out would promise more than users get."""
    result = await measure(reward=FakeReward(lambda prompt, text: 1.0))
    assert result.prompts == result.win_rate.clusters == 120
    assert result.win_rate.value == result.best_of_n_win_rate.value == 0.5
    assert [one.win_rate_served.value for one in result.best_of_k] == pytest.approx([0.5] * 8)
    assert result.win_rate.low < 0.45
    # Best-of-n gains nothing either, so the recovered share is NaN.
    assert result.to_dict()["recovered"]["value"] is None
    assert math.isnan(Evaluation.from_dict(result.to_dict()).recovered.low)


def test_prompts_are_chosen_by_seed_without_repeats() -> None:
    chosen = choose(PROMPTS + PROMPTS, 50, seed=1)
    assert len({one.prompt.digest for one in chosen}) == 50
    assert chosen == choose(reversed(PROMPTS), 50, seed=1)
    assert chosen != choose(PROMPTS, 50, seed=2)


def test_a_prompt_that_was_sampled_differently_is_measured_as_it_was_sampled_last() -> None:
    colder = replace(SAMPLING, temperature=0.7)
    assert choose([PROMPTS[0], PROMPTS[0]._replace(sampling=colder)], 5, seed=0)[0].sampling == colder


async def test_each_prompt_is_drawn_with_its_own_sampling_settings() -> None:
    short, shorter = Sampling(max_tokens=4), Sampling(max_tokens=2, temperature=0.5)
    prompts = [asked(f"One {i}", short) for i in range(30)] + [asked(f"Two {i}", shorter) for i in range(20)]
    result = await measure(prompts=prompts)
    assert (result.temperature, result.max_tokens) == (1.0, 4)  # of most
    assert 2 < result.length_mean.value < 4


class Counting(FakeEngine):
    """Counts for how many requests it draws at once."""

    drawing = most = 0

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        self.drawing += 1
        self.most = max(self.most, self.drawing)
        try:
            async for event in super().draw(request):
                await asyncio.sleep(0)
                yield event
        finally:
            self.drawing -= 1


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_prompts_are_drawn_for_at_once_than_asked(concurrency: int) -> None:
    engine = Counting()
    await measure(engine, concurrency=concurrency, settings=EvaluateSettings(prompts=12))
    assert engine.most == concurrency


async def test_each_distinct_text_of_a_prompt_is_scored_once() -> None:
    scored: list[str] = []

    def score(prompt: Prompt, text: str) -> float:
        scored.append(f"{prompt.digest}/{text}")
        return float(len(text))

    await measure(reward=FakeReward(score), settings=EvaluateSettings(prompts=20))
    assert len(scored) == len(set(scored)) > 100


async def test_rewards_read_the_text_of_prompts_of_token_ids() -> None:
    seen: set[Prompt] = set()

    def score(prompt: Prompt, text: str) -> float:
        seen.add(prompt)
        return len(text)

    prompts = [PROMPTS[0]._replace(prompt=Prompt(token_ids=(0, number))) for number in range(3)]
    reward = FakeReward(score)
    await measure(prompts=prompts, reward=reward, held_out_reward=reward, settings=EvaluateSettings(prompts=3))
    assert seen == {Prompt(text=f"please {word}") for word in ("please", "check", "your")}


async def test_prompts_that_do_not_fit_are_left_out_and_counted() -> None:
    long = [asked("word " * 60 + str(number)) for number in range(40)]
    result = await measure(
        FakeEngine(context_length=64), prompts=PROMPTS[:10] + long, settings=EvaluateSettings(prompts=50)
    )
    assert (result.prompts, result.skipped) == (10, 40)
    with pytest.raises(UserError, match="40 of 40 test prompts and their max_tokens do not fit the context of 64"):
        await measure(FakeEngine(context_length=64), prompts=long)


async def test_refusals() -> None:
    with pytest.raises(UserError, match=r"1 test prompts are too few.*train\.held_out_fraction"):
        await measure(prompts=PROMPTS[:1])
    with pytest.raises(UserError, match="the policy's own distribution"):
        await measure(prompts=[*PROMPTS[:5], asked("Hello?", Sampling(top_p=0.9))])
    failing = FakeReward(lambda prompt, text: math.nan)
    with pytest.raises(RewardError, match="finite"):
        await measure(reward=failing)
    with pytest.raises(EngineError, match="did not finish"):
        await measure(Aborting())


class Aborting(FakeEngine):
    """Ends every candidate before it is finished."""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        yield Started((1,), "hi")
