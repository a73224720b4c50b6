"""Tests of the targets of ranks and pairs, against the published table and sampled order statistics."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma

from bonbon import theory

# n, the paper's beta*_n, the pair target 1 / (2 beta*_n) and its standard deviation.
PUBLISHED = [
    (2, 0.5, 1.0, 1.0),
    (3, 0.166667, 3.0, 2.24),
    (4, 0.0909091, 5.5, 3.5),
    (5, 0.06, 8.333, 4.77),
    (6, 0.0437956, 11.417, 6.05),
    (8, 0.0275482094, 18.15, 8.61),
    (10, 0.0196381, 25.46, 11.2),
    (12, 0.0150518, 33.22, 13.7),
    (16, 0.0100455, 49.77, 18.9),
    (24, 0.00582149, 85.89, 29.1),
    (32, 0.00400498, 124.8, 39.4),
    (48, 0.00239711, 208.6, 59.9),
    (64, 0.00167852, 297.9, 80.4),
]


@pytest.mark.parametrize(("n", "beta", "target", "sd"), PUBLISHED)
def test_pair_target(n: int, beta: float, target: float, sd: float) -> None:
    assert theory.beta(n) == pytest.approx(beta, rel=2e-5)
    assert theory.pair_target(n) == pytest.approx(target, rel=1e-3)
    assert math.sqrt(theory.pair_target_variance(n)) == pytest.approx(sd, rel=3e-3)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_pair_target_is_the_contrast_of_sampled_groups(n: int) -> None:
    """(n - 1) (log U_(n) - log U_(1)); with seed 3, |z| > 4 for the mean has probability 6e-5."""
    groups = 40_000
    u = np.random.default_rng(3).uniform(size=(groups, n))
    contrast = (n - 1) * (np.log(u.max(1)) - np.log(u.min(1)))
    sd = math.sqrt(theory.pair_target_variance(n))
    assert abs(contrast.mean() - theory.pair_target(n)) < 4 * sd / math.sqrt(groups)
    assert contrast.std() == pytest.approx(sd, rel=0.04)


def test_harmonic() -> None:
    assert theory.harmonic(0) == 0
    assert theory.harmonic(4) == pytest.approx(25 / 12)


@pytest.mark.parametrize(
    ("n", "upper", "lower", "target_n"), [(8, 8, 2, 8), (8, 8, 1, 4), (8, 5, 3, 2.5), (16, 9, 4, 16)]
)
def test_rank_pair_target_is_the_contrast_of_sampled_groups(n: int, upper: int, lower: int, target_n: float) -> None:
    """(n' - 1) (log U_(i) - log U_(j)); with seed 4, |z| > 4 for the mean has probability 6e-5."""
    groups = 40_000
    log_u = np.log(np.sort(np.random.default_rng(4).uniform(size=(groups, n)), axis=1))
    contrast = (target_n - 1) * (log_u[:, upper - 1] - log_u[:, lower - 1])
    sd = math.sqrt(theory.rank_pair_variance(upper, lower, target_n))
    assert abs(contrast.mean() - theory.rank_pair_target(upper, lower, target_n)) < 4 * sd / math.sqrt(groups)
    assert contrast.std() == pytest.approx(sd, rel=0.04)


@given(st.integers(2, 64))
def test_best_and_worst_are_a_pair_of_ranks(n: int) -> None:
    assert theory.rank_pair_target(n, 1, n) == pytest.approx(theory.pair_target(n))
    assert theory.rank_pair_variance(n, 1, n) == pytest.approx(theory.pair_target_variance(n))


RANKS = st.integers(2, 40).flatmap(lambda n: st.tuples(st.integers(2, n), st.integers(1, n - 1), st.floats(1.1, 64)))


@given(RANKS, st.floats(1.1, 64))
def test_targets_of_another_n_are_rescaled(ranks: tuple[int, int, float], other: float) -> None:
    upper, lower, n = ranks
    if upper <= lower:
        upper = lower + 1
    ratio = (other - 1) / (n - 1)
    assert theory.rank_pair_target(upper, lower, other) == pytest.approx(
        ratio * theory.rank_pair_target(upper, lower, n)
    )
    assert theory.rank_pair_variance(upper, lower, other) == pytest.approx(
        ratio**2 * theory.rank_pair_variance(upper, lower, n)
    )


@pytest.mark.parametrize(("upper", "lower"), [(1, 1), (2, 3), (4, 0)])
def test_a_pair_has_an_upper_and_a_lower_rank(upper: int, lower: int) -> None:
    with pytest.raises(ValueError, match=f"got {upper} and {lower}"):
        theory.rank_pair_target(upper, lower, 8)


@pytest.mark.parametrize(
    ("n", "partner", "noise"), [(2, 1, 1), (8, 2, 0.449), (16, 4, 0.315), (32, 7, 0.221), (64, 13, 0.156)]
)
def test_quietest_partner(n: int, partner: int, noise: float) -> None:
    assert theory.quietest_partner(n) == partner
    found = math.sqrt(theory.rank_pair_variance(n, partner, n)) / theory.rank_pair_target(n, partner, n)
    assert found == pytest.approx(noise, abs=5e-4)


@pytest.mark.parametrize("n", [2, 8, 16])
@pytest.mark.parametrize("target_n", [None, 2, 3.5])
def test_rank_targets(n: int, target_n: float | None) -> None:
    goal = target_n or n
    expected = [math.log(goal) + (goal - 1) * (digamma(k) - digamma(n)) for k in range(1, n + 1)]
    targets = theory.rank_targets(n, target_n)
    assert targets == pytest.approx(expected)
    assert targets[-1] - targets[0] == pytest.approx(theory.rank_pair_target(n, 1, goal))


def test_rank_targets_belong_to_a_policy() -> None:
    """g(u) = E[t_R | u] with R - 1 ~ Bin(n - 1, u) is a log ratio whose policy is best-of-n: by quadrature at n = 8."""
    n = 8
    u = (np.arange(20_000) + 0.5) / 20_000
    chances = np.array([math.comb(n - 1, k) * u**k * (1 - u) ** (n - 1 - k) for k in range(n)])
    ratio = np.exp(theory.rank_targets(n) @ chances)
    assert ratio.mean() == pytest.approx(1, abs=2e-4)
    assert (ratio * u).mean() == pytest.approx(theory.best_of_n_win_rate(n), abs=1e-4)
    assert (ratio * np.log(ratio)).mean() == pytest.approx(theory.best_of_n_kl(n), abs=5e-4)


@given(st.lists(st.integers(0, 3).map(float), min_size=2, max_size=10), st.sampled_from([None, 2.0, 5.0]))
def test_tied_candidates_share_their_targets(rewards: list[float], target_n: float | None) -> None:
    targets = theory.tied_rank_targets(rewards, target_n)
    assert targets.sum() == pytest.approx(theory.rank_targets(len(rewards), target_n).sum())
    for a, x in zip(rewards, targets, strict=True):
        for b, y in zip(rewards, targets, strict=True):
            assert (a < b) == (x < y - 1e-12)
