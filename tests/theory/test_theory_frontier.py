"""Tests of the frontier: closed forms by quadrature, the inverse, and best-of-n's distance from it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonbon import theory


@pytest.mark.parametrize("c", [1e-3, 0.0999, 0.1001, 0.5, 3.0, 12.0, 60.0])
def test_the_tilting_integrates_its_own_density(c: float) -> None:
    u = (np.arange(400_000) + 0.5) / 400_000
    density = np.exp(c * (u - 1))
    density /= density.mean()
    assert theory.tilted_win_rate(c) == pytest.approx(float(np.mean(density * u)), abs=1e-6)
    assert theory.tilted_kl(c) == pytest.approx(float(np.mean(density * np.log(density))), rel=1e-4, abs=1e-9)


def test_series_and_closed_form_meet() -> None:
    """At .1 both have about twelve correct digits."""
    for function in (theory.tilted_win_rate, theory.tilted_kl):
        assert function(0.1 - 1e-13) == pytest.approx(function(0.1), rel=1e-10)


@pytest.mark.parametrize(
    ("n", "points"), [(2, 0.92), (3, 0.64), (4, 0.40), (8, 0.079), (16, 0.011), (64, 0.0), (1.78, 0.95)]
)  # fmt: skip
def test_best_of_n_is_all_but_on_the_frontier(n: float, points: float) -> None:
    """Distances are in percentage points; the largest is at n = 1.78."""
    gap = theory.frontier_gap(theory.best_of_n_win_rate(n), theory.best_of_n_kl(n))
    assert 100 * gap == pytest.approx(points, abs=0.006)


@given(st.floats(1.001, 1000))
def test_best_of_n_is_never_over_the_frontier(n: float) -> None:
    gap = theory.frontier_gap(theory.best_of_n_win_rate(n), theory.best_of_n_kl(n))
    assert -1e-9 <= gap < 0.00955


@given(st.floats(1e-6, 12))
def test_the_frontier_and_its_inverse(kl: float) -> None:
    win_rate = theory.frontier_win_rate(kl)
    assert 0.5 < win_rate < 1
    assert theory.frontier_kl(win_rate) == pytest.approx(kl, rel=1e-6)


@given(st.lists(st.floats(0, 30), min_size=2, max_size=2, unique=True).map(sorted))
def test_more_kl_buys_more_win_rate(kls: list[float]) -> None:
    assert theory.frontier_win_rate(kls[0]) <= theory.frontier_win_rate(kls[1])


def test_the_ends_of_the_frontier() -> None:
    assert theory.frontier_win_rate(0) == 0.5
    assert theory.frontier_win_rate(math.inf) == 1
    assert theory.frontier_kl(0.5) == theory.frontier_kl(0.2) == 0
    for kl in (-0.1, math.nan):
        with pytest.raises(ValueError, match="not negative"):
            theory.frontier_win_rate(kl)
    with pytest.raises(ValueError, match="finite KL"):
        theory.frontier_kl(1.0)
