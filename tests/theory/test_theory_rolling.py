"""Tests of restarting confidence sequences: error rates over many runs, drifts, and their state in JSON."""

import json

import numpy as np
import pytest

from bonbon.theory import RollingSequence


def outcomes(rng: np.random.Generator, win_rate: float, count: int, ties: float = 0.1) -> list[float]:
    """Returns comparisons, a tenth of them ties."""
    drawn = rng.choice([0.5, 1.0, 0.0], size=count, p=[ties, win_rate - ties / 2, 1 - win_rate - ties / 2])
    return [float(x) for x in drawn]


def steps_until_below(rolling: RollingSequence, observations: list[float], floor: float) -> int | None:
    for step, x in enumerate(observations, start=1):
        rolling.add(x)
        if rolling.is_below(floor):
            return step
    return None


def test_a_win_rate_at_the_minimum_is_rarely_judged_below_it_however_long_one_looks() -> None:
    """Each run may err with probability at most .05 over 2500 checks: of 100 runs, at most 12 (P < .003 at .05)."""
    rng = np.random.default_rng(0)
    fell = [steps_until_below(RollingSequence(), outcomes(rng, 0.5, 2500), 0.5) for _ in range(100)]
    assert sum(step is not None for step in fell) <= 12


@pytest.mark.parametrize(("after", "median"), [(0.1, 400), (0.3, 600)])
def test_a_drift_is_seen_after_any_number_of_good_comparisons(after: float, median: int) -> None:
    rng, steps = np.random.default_rng(1), []
    for _ in range(15):
        rolling = RollingSequence()
        for x in outcomes(rng, 0.85, 1000 + int(rng.integers(1000))):
            rolling.add(x)
        assert not rolling.is_below(0.5)
        steps.append(steps_until_below(rolling, outcomes(rng, after, 3000), 0.5) or 3000)
    assert np.median(steps) < median


def test_the_band_rests_on_one_to_two_windows() -> None:
    rolling, rng = RollingSequence(window=100), np.random.default_rng(2)
    assert (rolling.count, rolling.mean, rolling.interval) == (0, 0.5, (0.0, 1.0))
    counts = []
    for x in outcomes(rng, 0.8, 450):
        rolling.add(x)
        counts.append(rolling.count)
    assert (counts[99], counts[199], counts[200], counts[449]) == (100, 200, 101, 150)
    assert rolling.interval.low < 0.8 < rolling.interval.high
    assert rolling.mean == pytest.approx(0.8, abs=0.12)  # three standard deviations


def test_a_sequence_goes_on_from_its_state() -> None:
    """The state is exact: two gateways or a restart give what one process would have given."""
    one, other = RollingSequence(window=20), RollingSequence(window=20)
    for x in outcomes(np.random.default_rng(3), 0.7, 75):
        other = RollingSequence.from_state(json.loads(json.dumps(other.state())))
        assert other.add(x) == one.add(x)
    assert other.state() == one.state()


def test_what_is_no_window_or_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RollingSequence(window=0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        RollingSequence().add(1.5)
