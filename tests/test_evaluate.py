"""Evaluation: its estimates against laws that are known, and what it refuses."""

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bonbon.best_of_n import BestOfN
from bonbon.engines.base import Delta, DrawRequest, Sampling, Started, VersionFiles, VersionKind
from bonbon.engines.fake import FakeEngine
from bonbon.errors import EngineError, RewardError, UserError
from bonbon.prompt import Prompt
from bonbon.rewards.fake import FakeReward
from bonbon.settings import EvaluateSettings
from bonbon.theory import best_of_n_win_rate
from trainer.evaluation import estimates
from trainer.evaluation.divergence import Completion, Divergence
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.samples import choose

PROMPTS = [Prompt.user(f"Where is order {number}?") for number in range(300)]
SAMPLING = Sampling(max_tokens=24)
VERSION = VersionFiles("fake-bonbon-0001", VersionKind.ADAPTER, Path("unused"))
REFERENCE = VersionFiles("fake-bonbon-0000", VersionKind.ADAPTER, Path("unused"))


class Constant:
    """Says that every completion lies as far from each policy as it is long."""

    name = "constant"

    def __call__(
        self, policy: str, others: Sequence[str], completions: Sequence[Completion], advance: Callable[[int], None]
    ) -> dict[str, list[Divergence]]:
        advance(len(completions))
        return {
            name: [Divergence(0.5 * (i + 1), len(one.tokens)) for one in completions] for i, name in enumerate(others)
        }


class BestOfEngine(FakeEngine):
    """Versions other than the base answer with the best of `n` draws of the base, by the default fake reward."""

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
    """The same versions as another engine, drawn by the plain fake."""

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
        "reference": None,
        "n": 8,
        "sampling": SAMPLING,
        "settings": EvaluateSettings(prompts=120),
        "progress": False,
    }
    return await evaluate(**(arguments | changes))  # type: ignore[arg-type]


async def test_equal_policies_tie_and_best_of_n_wins_as_the_theory_says() -> None:
    reached: list[bool] = []
    for seed in range(4):
        result = await measure(seed=seed, settings=EvaluateSettings(prompts=100))
        reached.append(result.win_rate.low <= 0.5 <= result.win_rate.high)
        assert result.win_rate.high - result.win_rate.low < 0.2
        # Equal texts tie: best-of-n falls short of n/(n+1) by at most half the ties.
        assert result.best_of_n_win_rate.value == pytest.approx(best_of_n_win_rate(8), abs=0.03)
        assert abs(result.recovered.value) < 0.25
        assert result.win_rate_best_of_n.value == pytest.approx(1 / 9, abs=0.06)
    assert sum(reached) >= 3


async def test_a_policy_that_is_best_of_n_recovers_all_of_its_gain() -> None:
    result = await measure(BestOfEngine(8), settings=EvaluateSettings(prompts=150))
    assert result.win_rate.low <= best_of_n_win_rate(8) <= result.win_rate.high + 0.01
    assert result.win_rate_best_of_n.low <= 0.5 <= result.win_rate_best_of_n.high
    assert result.recovered.low <= 1 <= result.recovered.high
    assert result.reward_mean.value == pytest.approx(result.best_of_n_reward_mean.value, abs=0.03)


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


async def test_counts_lengths_and_the_reference_are_reported() -> None:
    result = await measure(reference=REFERENCE, held_out_reward=FakeReward(lambda prompt, text: len(text)))
    assert (result.prompts, result.skipped, result.answers) == (120, 0, 2)
    assert (result.version, result.base, result.reference) == (VERSION.name, "fake", REFERENCE.name)
    assert result.win_rate.count == 120 * 2 * 16
    assert result.win_rate.clusters == 120
    assert result.win_rate_reference is not None
    assert result.win_rate_reference.low <= 0.5 <= result.win_rate_reference.high
    assert result.held_out_win_rate is not None
    assert result.held_out_win_rate.low <= 0.5 <= result.held_out_win_rate.high
    assert result.kl.value == 0.5
    assert result.kl_from_reference.value == 1.0
    assert result.kl_k1.value == pytest.approx(result.length_mean.value)
    assert result.length_ratio.low <= 1 <= result.length_ratio.high
    # One draw in thirteen stops: (12/13)^24 of them reach 24 tokens.
    assert result.base_truncated == pytest.approx((12 / 13) ** 24, abs=0.03)
    assert 0.8 < result.distinct_2_ratio < 1.2


async def test_the_same_seed_measures_the_same_and_survives_json(tmp_path: Path) -> None:
    first, second = await measure(seed=3), await measure(seed=3)
    first.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert loaded == first
    assert {**first.to_dict(), "seconds": 0} == {**second.to_dict(), "seconds": 0}
    with pytest.raises(UserError, match="kl_estimator"):
        Evaluation.from_dict({key: value for key, value in first.to_dict().items() if key != "kl_estimator"})


async def test_what_is_not_finite_becomes_null_and_comes_back_as_nan() -> None:
    result = await measure(reward=FakeReward(lambda prompt, text: 1.0))
    assert result.to_dict()["recovered"]["value"] is None
    assert math.isnan(Evaluation.from_dict(result.to_dict()).recovered.low)
    assert result.win_rate.value == 0.5


def test_prompts_are_chosen_by_seed_without_repeats() -> None:
    chosen = choose(PROMPTS + PROMPTS, 50, seed=1)
    assert len({prompt.digest for prompt in chosen}) == 50
    assert chosen == choose(reversed(PROMPTS), 50, seed=1)
    assert chosen != choose(PROMPTS, 50, seed=2)


async def test_each_distinct_text_of_a_prompt_is_scored_once() -> None:
    scored: list[str] = []

    def score(prompt: Prompt, text: str) -> float:
        scored.append(f"{prompt.digest}/{text}")
        return float(len(text))

    await measure(reward=FakeReward(score), settings=EvaluateSettings(prompts=20))
    assert len(scored) == len(set(scored)) > 100


async def test_prompts_without_room_are_left_out_and_counted() -> None:
    long = [Prompt.user("word " * 60 + str(number)) for number in range(40)]
    result = await measure(
        FakeEngine(context_length=64), prompts=PROMPTS[:10] + long, settings=EvaluateSettings(prompts=50)
    )
    assert (result.prompts, result.skipped) == (10, 40)
    with pytest.raises(UserError, match="leave no room for max_tokens 24"):
        await measure(FakeEngine(context_length=64), prompts=long)


async def test_refusals() -> None:
    with pytest.raises(UserError, match="1 held-out prompts are too few"):
        await measure(prompts=PROMPTS[:1])
    with pytest.raises(UserError, match="own law"):
        await measure(sampling=Sampling(top_p=0.9))
    failing = FakeReward(lambda prompt, text: math.nan)
    with pytest.raises(RewardError, match="finite"):
        await measure(reward=failing)
    with pytest.raises(EngineError, match="did not finish"):
        await measure(Aborting())


class Aborting(FakeEngine):
    """Ends every candidate before it is finished."""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        yield Started((1,), "hi")
