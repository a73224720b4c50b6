"""Tests of the objective J: its values, and that it measures the distance from the best policy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonbon import theory

UNIFORM = (np.arange(200_000) + 0.5) / 200_000
"""The base's own win chances."""


@pytest.mark.parametrize(
    ("n", "kl", "c", "win_rate", "of_base", "best", "gain"),
    [
        (2, 0.1931, 2.2886, 0.6759, 1.1443, 1.3538, 0.2094),
        (4, 0.6363, 4.9169, 0.8040, 2.4585, 3.3169, 0.8584),
        (8, 1.2044, 9.0545, 0.8897, 4.5273, 6.8512, 2.3239),
        (16, 1.8351, 17.0319, 0.9413, 8.5159, 14.1968, 5.6809),
    ],
)
def test_the_table(n: int, kl: float, c: float, win_rate: float, of_base: float, best: float, gain: float) -> None:
    """The tilt at best-of-n's own KL, and J of the base and of the best policy."""
    assert theory.tilt(n) == pytest.approx(c, abs=6e-5)
    assert theory.tilted_kl(theory.tilt(n)) == pytest.approx(theory.best_of_n_kl(n), rel=1e-12)
    assert theory.best_of_n_kl(n) == pytest.approx(kl, abs=6e-5)
    assert theory.tilted_win_rate(c) == pytest.approx(win_rate, abs=6e-5)
    assert theory.objective(0.5, 0.0, n) == pytest.approx(of_base, abs=6e-5)
    assert theory.objective(theory.tilted_win_rate(theory.tilt(n)), theory.best_of_n_kl(n), n) == pytest.approx(
        best, abs=1.1e-4
    )
    assert theory.best_gain(n) == pytest.approx(gain, abs=6e-5)
    assert theory.objective_gain(0.5, 0.0, n) == 0


@pytest.mark.parametrize("kl", [1e-6, 0.1, 3.0])
def test_the_tilt_for_a_kl_has_that_kl(kl: float) -> None:
    assert theory.tilted_kl(theory.tilt_for_kl(kl)) == pytest.approx(kl, rel=1e-9)


@given(st.floats(1.01, 500))
def test_only_the_tilted_base_has_the_best_gain(n: float) -> None:
    """The policy at the frontier has it; best-of-n itself, as far from the base, falls short of it."""
    c = theory.tilt(n)
    best = theory.objective_gain(theory.tilted_win_rate(c), theory.tilted_kl(c), n)
    assert best == pytest.approx(theory.best_gain(n), rel=1e-6, abs=1e-9)
    own = theory.objective_gain(theory.best_of_n_win_rate(n), theory.best_of_n_kl(n), n)
    assert own <= theory.best_gain(n) + 1e-9
    for other in (0.5 * c, 2 * c):
        assert theory.objective_gain(theory.tilted_win_rate(other), theory.tilted_kl(other), n) < best


@pytest.mark.parametrize("n", [2, 8, 64])
def test_what_is_missing_from_the_best_gain_is_the_divergence_from_the_best_policy(n: int) -> None:
    """KL(pi || pi_c) = max J - J(pi), for a policy that is not a tilted base."""
    c = theory.tilt(n)
    policy = 0.3 + 1.4 * (UNIFORM > 0.5) * UNIFORM
    policy /= policy.mean()
    best = np.exp(c * (UNIFORM - 1))
    best /= best.mean()
    from_base, from_best = (float(np.mean(policy * np.log(policy / other))) for other in (np.ones_like(best), best))
    gain = theory.objective_gain(float(np.mean(policy * UNIFORM)), from_base, n)
    assert theory.best_gain(n) - gain == pytest.approx(from_best, abs=1e-4)


def test_a_policy_that_spends_best_of_8s_kl_for_a_little_is_worse_than_the_base() -> None:
    assert theory.objective_gain(0.568, 1.204, 8) == pytest.approx(-0.588, abs=1e-3)


def test_there_is_no_tilt_of_one_draw() -> None:
    for n in (1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="n > 1"):
            theory.tilt(n)
