import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

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
    assert 1 / (2 * theory.pair_target(n)) == pytest.approx(beta, rel=2e-5)
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


@pytest.mark.parametrize(("n", "win_rate", "kl"), [(1, 0.5, 0.0), (2, 2 / 3, 0.19315), (8, 8 / 9, 1.20444)])
def test_best_of_n(n: int, win_rate: float, kl: float) -> None:
    assert theory.best_of_n_win_rate(n) == pytest.approx(win_rate)
    assert theory.best_of_n_kl(n) == pytest.approx(kl, abs=1e-5)


@pytest.mark.parametrize("n", [1.5, 2, 5, 8, 32])
def test_best_of_n_integrates_its_own_density(n: float) -> None:
    """Best-of-n has density n u^(n-1) of U: the mean of U, and of the density's logarithm, by quadrature."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert theory.best_of_n_win_rate(n) == pytest.approx(float(np.mean(density * u)), abs=1e-5)
    assert theory.best_of_n_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-5)


def test_harmonic() -> None:
    assert theory.harmonic(0) == 0
    assert theory.harmonic(4) == pytest.approx(25 / 12)


# Few distinct values, so that ties are common.
REWARDS = st.lists(st.integers(-3, 3).map(float) | st.floats(allow_nan=False), min_size=1, max_size=12)


@given(REWARDS)
def test_mid_ranks_count_what_is_below_and_half_of_what_ties(rewards: list[float]) -> None:
    expected = [sum((y < x) + 0.5 * (y == x) for y in rewards) + 0.5 for x in rewards]
    assert theory.mid_ranks(rewards) == expected


@given(REWARDS, st.randoms(use_true_random=False))
def test_mid_ranks_do_not_depend_on_order(rewards: list[float], random: object) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = theory.mid_ranks([rewards[i] for i in order])
    assert shuffled == [theory.mid_ranks(rewards)[i] for i in order]
    assert sum(shuffled) == len(rewards) * (len(rewards) + 1) / 2


@given(REWARDS, REWARDS)
def test_win_fraction(ours: list[float], theirs: list[float]) -> None:
    pairs = list(itertools.product(ours, theirs))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert theory.win_fraction(ours, theirs) == pytest.approx(expected)
    assert theory.win_fraction(theirs, ours) == pytest.approx(1 - expected)


@pytest.mark.parametrize(("wins", "count"), [(8, 10), (1, 20), (20, 20), (177, 200), (7088, 8000)])
def test_wilson(wins: int, count: int) -> None:
    interval = theory.wilson(wins, count)
    assert interval == pytest.approx(tuple(binomtest(wins, count).proportion_ci(method="wilson")), abs=1e-6)
    tied = theory.wilson(wins - 0.5, count)
    assert tied.low < interval.low
    assert tied.high < interval.high


def test_wilson_of_nothing_knows_nothing() -> None:
    assert theory.wilson(0, 0) == (0, 1)


@pytest.mark.parametrize("p", [0.5, 0.7, 8 / 9])
def test_wilson_coverage(p: float) -> None:
    """Exactly, by the binomial's own weights: at 200 comparisons within .02 of .95."""
    covered = sum(
        math.comb(200, k) * p**k * (1 - p) ** (200 - k)
        for k in range(201)
        if theory.wilson(k, 200).low <= p <= theory.wilson(k, 200).high
    )
    assert covered == pytest.approx(0.95, abs=0.02)


def test_clustered_mean_by_hand() -> None:
    estimate = theory.clustered_mean([0.5, 1.0, 0.75, 0.75], 16)
    se = math.sqrt((0.25**2 + 0.25**2) / (4 * 3))
    assert estimate.value == 0.75
    assert estimate.low == pytest.approx(0.75 - 1.959964 * se)
    assert estimate.high == pytest.approx(0.75 + 1.959964 * se)
    assert (estimate.count, estimate.clusters) == (16, 4)
    assert theory.clustered_mean([0.0, 1.0]).count == 2
    with pytest.raises(ValueError, match="two prompts, got 1"):
        theory.clustered_mean([0.5])


def test_clustered_mean_coverage() -> None:
    """Prompts differ in difficulty, 4 comparisons each: the interval must know the prompt to be the cluster.

    2,000 intervals over 100 prompts: true coverage is about .946 (normal quantile on 99 degrees of freedom); outside
    [.93, .965] with seed 11 it would be 3 standard errors (.005) off, probability < .3 %. Wilson on the 400
    comparisons as if they were independent covers far less, which the last line shows.
    """
    rng = np.random.default_rng(11)
    prompts, answers, trials = 100, 4, 2000
    chance = rng.beta(0.8, 0.4, size=(trials, prompts))
    won = rng.binomial(answers, chance) / answers
    truth = 0.8 / 1.2
    estimates = [theory.clustered_mean(row.tolist(), prompts * answers) for row in won]
    covered = np.mean([e.low <= truth <= e.high for e in estimates])
    assert 0.93 <= covered <= 0.965
    naive = [theory.wilson(row.sum() * answers, prompts * answers) for row in won]
    assert np.mean([interval.low <= truth <= interval.high for interval in naive]) < 0.88
