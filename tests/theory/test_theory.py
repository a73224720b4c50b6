"""Tests of best-of-n's closed forms, with and without ties, and of ranks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonbon import theory


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


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("logprob", [-0.01, -0.3, -2.0, -20.0, -500.0])
def test_kl_of_an_answer_that_may_be_drawn_twice(n: int, logprob: float) -> None:
    """Against the formula in exact enough arithmetic; an answer that is never drawn twice gives the closed form."""
    e = math.exp(logprob)
    if logprob > -5:
        miss = (1 - e) ** n
        bound = math.log(n) + (n - 1) * math.log(1 - e) - (n - 1) / n
        expected = miss * bound + (1 - miss) * math.log((1 - miss) / e)
        assert theory.best_of_n_kl_of_answer(n, logprob) == pytest.approx(expected, rel=1e-9)
    else:
        assert theory.best_of_n_kl_of_answer(n, logprob) == pytest.approx(theory.best_of_n_kl(n), abs=1e-6)


def test_kl_of_a_certain_answer_is_nothing() -> None:
    assert theory.best_of_n_kl_of_answer(8, 0.0) == 0
    assert theory.best_of_n_kl_of_answer(8, -1e-12) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"at most 0, got 0\.5"):
        theory.best_of_n_kl_of_answer(8, 0.5)


MASSES = st.lists(st.floats(0.01, 1), min_size=1, max_size=8).map(lambda p: [x / math.fsum(p) for x in p])


@given(MASSES, st.integers(2, 16))
def test_ties_cost_win_rate_and_spare_kl(masses: list[float], n: int) -> None:
    win_rate, ideal = theory.tied_win_rate(masses, n), theory.best_of_n_win_rate(n)
    assert win_rate <= ideal + 1e-12
    assert ideal - win_rate <= theory.tie_loss(masses, n) + 1e-12
    assert -1e-12 <= theory.tied_kl(masses, n) <= theory.best_of_n_kl(n) + 1e-12
    assert theory.best_level_masses(masses, n).sum() == pytest.approx(1)


@given(MASSES, st.integers(2, 8))
def test_ties_spare_just_the_kl_within_levels(masses: list[float], n: int) -> None:
    """The gap to the closed form is the expected KL of n u^(n-1), within a level, from uniform: by quadrature."""
    top = np.cumsum(masses)
    gap = 0.0
    for level, q in enumerate(theory.best_level_masses(masses, n)):
        u = top[level] - masses[level] + (np.arange(2000) + 0.5) / 2000 * masses[level]
        density = u ** (n - 1) / np.mean(u ** (n - 1))
        gap += q * float(np.mean(density * np.log(density)))
    assert theory.best_of_n_kl(n) - theory.tied_kl(masses, n) == pytest.approx(gap, abs=2e-3)


def test_tied_win_rate_of_sampled_groups() -> None:
    """Seven levels, n = 6, 200,000 groups: |z| > 4 has probability 6e-5."""
    rng = np.random.default_rng(0)
    masses = rng.dirichlet(np.full(7, 0.7))
    best, other = rng.choice(7, (200_000, 6), p=masses).max(1), rng.choice(7, 200_000, p=masses)
    won = (best > other) + 0.5 * (best == other)
    assert abs(won.mean() - theory.tied_win_rate(masses.tolist(), 6)) < 4 * won.std() / math.sqrt(won.size)
    levels = np.bincount(best, minlength=7) / best.size
    assert levels == pytest.approx(theory.best_level_masses(masses.tolist(), 6), abs=4 * 0.5 / math.sqrt(best.size))


def test_levels_that_are_no_distribution_are_refused() -> None:
    assert theory.tied_kl([1.0], 8) == 0
    assert theory.tied_win_rate([1.0], 8) == 0.5
    assert theory.tied_kl([0.0, 1.0], 8) == 0
    for masses in ([], [0.5, 0.6], [-0.5, 1.5]):
        with pytest.raises(ValueError, match="add up to 1"):
            theory.tied_win_rate(masses, 8)


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
