"""Tests of KL estimators: unbiased where they may be used, and unreliable where they must not be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from bonbon import theory


def best_of_n_log_ratios(n: int, count: int, seed: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    u = np.random.default_rng(seed).random(count) ** (1 / n)
    return np.asarray(math.log(n) + (n - 1) * np.log(u))


@pytest.mark.parametrize("n", [2, 8])
def test_k1_is_unbiased_for_best_of_n(n: int) -> None:
    """100,000 completions; |z| > 4 has probability 6e-5."""
    k1 = theory.k1(best_of_n_log_ratios(n, 100_000, 0))
    sd = (n - 1) / n
    assert abs(k1.mean() - theory.best_of_n_kl(n)) < 4 * sd / math.sqrt(k1.size)
    assert k1.std() == pytest.approx(sd, rel=0.02)


def test_k3_of_whole_completions_does_not_settle() -> None:
    """Ten means of 100,000 completions at n = 8, where k1's own lie within .01 of the truth."""
    blocks = [best_of_n_log_ratios(8, 100_000, seed) for seed in range(10)]
    assert np.ptp([theory.k3(block).mean() for block in blocks]) > 0.4
    assert [theory.k1(block).mean() for block in blocks] == pytest.approx([theory.best_of_n_kl(8)] * 10, abs=0.01)


@given(st.lists(st.floats(-30, 30), min_size=1))
def test_k3_is_never_negative(log_ratios: list[float]) -> None:
    assert (theory.k3(log_ratios) >= 0).all()


def test_rao_blackwell_is_unbiased_and_of_less_variance_than_k1() -> None:
    """A chain of four tokens out of five, whose distribution depends on the token before. Both means against the exact
    sum over all 625 completions, 3,000 draws; |z| > 4 has probability 6e-5."""
    rng = np.random.default_rng(3)
    policy, reference = log_softmax(rng.normal(size=(2, 5, 5)), axis=-1)
    count, length = 3000, 4
    completions = np.zeros((count, length + 1), dtype=int)
    for position in range(length):
        chances = np.exp(policy[completions[:, position]]).cumsum(1)
        completions[:, position + 1] = (rng.random((count, 1)) > chances[:, :4]).sum(1)
    before, after = completions[:, :-1], completions[:, 1:]
    exact, state = 0.0, np.eye(5)[0]
    per_state = (np.exp(policy) * (policy - reference)).sum(1)
    for _ in range(length):
        exact += float(state @ per_state)
        state = state @ np.exp(policy)
    k1 = theory.k1((policy - reference)[before, after].sum(1))
    exact_each = np.array([theory.rao_blackwell(policy[row], reference[row]) for row in before])
    for values in (k1, exact_each):
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(count)
    assert exact_each.min() >= 0
    assert exact_each.var() < k1.var() / 2


def test_a_token_that_is_never_drawn_adds_nothing() -> None:
    policy = np.log([[0.5, 0.5, 1e-300]])
    policy[0, 2] = -np.inf
    reference = np.log([[0.25, 0.25, 0.5]])
    assert theory.rao_blackwell(policy, reference) == pytest.approx(math.log(2))
    reference[0, 2] = -np.inf
    assert math.isfinite(theory.rao_blackwell(policy, reference))
