"""Tests of best-of-k estimates from logged groups: unbiased, equal to enumeration, and of less variance."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonbon import theory

# Few distinct values, so that ties are common.
GROUPS = st.lists(st.integers(-2, 2).map(float) | st.floats(-10, 10), min_size=1, max_size=7)


@given(GROUPS)
def test_best_of_k_rewards_are_the_mean_over_all_subsets(rewards: list[float]) -> None:
    expected = [
        np.mean([max(subset) for subset in itertools.combinations(rewards, k)]) for k in range(1, len(rewards) + 1)
    ]
    assert theory.best_of_k_rewards(rewards) == pytest.approx(expected)


@given(GROUPS)
def test_best_of_k_win_rates_are_the_mean_over_all_subsets_and_opponents(scores: list[float]) -> None:
    """The judge's scores are in the order of the rank."""
    n = len(scores)
    expected = []
    for k in range(1, n):
        wins = [
            (scores[max(subset)] > scores[j]) + 0.5 * (scores[max(subset)] == scores[j])
            for subset in itertools.combinations(range(n), k)
            for j in set(range(n)) - set(subset)
        ]
        expected.append(np.mean(wins))
    assert theory.best_of_k_win_rates(scores) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=32, unique=True))
def test_the_reward_as_its_own_judge_says_nothing_without_ties(rewards: list[float]) -> None:
    win_rates = theory.best_of_k_win_rates(sorted(rewards))
    assert win_rates == pytest.approx([theory.best_of_n_win_rate(k) for k in range(1, len(rewards))])


@given(st.integers(1, 128).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_weights_are_the_distribution_of_the_best_rank(sizes: tuple[int, int]) -> None:
    n, k = sizes
    weights = theory.best_of_k_weights(n, k)
    assert weights.sum() == pytest.approx(1)
    assert (weights[: k - 1] == 0).all()
    assert weights @ np.arange(1, n + 1) == pytest.approx(k * (n + 1) / (k + 1))


def test_k_is_at_most_n() -> None:
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"between 1 and n = 8, got {k}"):
            theory.best_of_k_weights(8, k)


def test_best_of_k_rewards_are_unbiased_and_of_less_variance() -> None:
    """Gumbel rewards have E max of k = log k + gamma. 40,000 groups of 8: |z| > 4 has probability 6e-5 for each k."""
    rng = np.random.default_rng(0)
    groups = rng.gumbel(size=(40_000, 8))
    estimates = np.array([theory.best_of_k_rewards(group.tolist()) for group in groups])
    for k in range(1, 9):
        one = estimates[:, k - 1]
        assert abs(one.mean() - math.log(k) - np.euler_gamma) < 4 * one.std() / math.sqrt(one.size)
    assert estimates[:, 2].var() / groups[:, :3].max(1).var() == pytest.approx(0.34, abs=0.02)


def test_sft_weights_imitate_a_smaller_n_without_throwing_candidates_away() -> None:
    """E sin(3 r) under best-of-4, from groups of 8 and from groups of 4; |z| > 4 has probability 6e-5."""
    rng = np.random.default_rng(1)
    weighted = np.sin(3 * np.sort(rng.gumbel(size=(100_000, 8)), axis=1)) @ theory.best_of_k_weights(8, 4)
    direct = np.sin(3 * rng.gumbel(size=(400_000, 4)).max(1))
    error = math.hypot(weighted.std() / math.sqrt(weighted.size), direct.std() / math.sqrt(direct.size))
    assert abs(weighted.mean() - direct.mean()) < 4 * error


def test_another_judge_is_measured_without_bias() -> None:
    """The judge agrees with the reward in part; best-of-3 against a fresh draw. |z| > 4 has probability 6e-5."""
    rng = np.random.default_rng(2)
    reward, judge = rng.normal(size=(2, 20_000, 6))
    judge += reward
    order = reward.argsort(1)
    estimates = np.array([theory.best_of_k_win_rates(s) for s in np.take_along_axis(judge, order, 1).tolist()])
    fresh_reward, fresh = rng.normal(size=(2, 200_000, 4))
    fresh += fresh_reward
    best = fresh_reward[:, :3].argmax(1)
    won = fresh[np.arange(len(fresh)), best] > fresh[:, 3]
    error = math.hypot(estimates[:, 2].std() / math.sqrt(len(estimates)), won.std() / math.sqrt(won.size))
    assert abs(estimates[:, 2].mean() - won.mean()) < 4 * error
    assert estimates[:, 2].mean() < theory.best_of_n_win_rate(3) - 0.05
