"""Tests of the intervals' coverage, for a fixed number of comparisons and at any time."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, t

from bonbon import theory


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
    """The coverage is computed exactly from binomial weights: at 200 comparisons within .02 of .95."""
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
    assert estimate.low == pytest.approx(0.75 - theory.student_t(3) * se)
    assert estimate.high == pytest.approx(0.75 + theory.student_t(3) * se)
    assert (estimate.count, estimate.clusters) == (16, 4)
    assert theory.clustered_mean([0.0, 1.0]).count == 2
    with pytest.raises(ValueError, match="two prompts, got 1"):
        theory.clustered_mean([0.5])


def test_clustered_mean_coverage() -> None:
    """Prompts differ in difficulty, 4 comparisons each: the interval must know the prompt to be the cluster.

    2,000 intervals over 100 prompts: true coverage is about .95; outside
    [.93, .965] with seed 11 it would be 3 or more standard errors (.005) off, probability < .3 %. Wilson on the 400
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


def test_student_t_agrees_with_scipy() -> None:
    for degrees in (1, 2, 3, 5, 10, 30, 200):
        assert theory.student_t(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=4e-3)
    with pytest.raises(ValueError, match="two prompts"):
        theory.student_t(0)


def test_the_interval_of_a_ratio_holds_its_error_rate() -> None:
    """600 runs, wrong with probability .05 each: 12 or fewer, or 48 or more, happen with probability < .2 %."""
    rng = np.random.default_rng(1)
    runs, missed = 600, 0
    for _ in range(runs):
        base = rng.gamma(4, 2, 60)
        ours = 0.7 * base + rng.gamma(3, 1, 60)
        estimate = theory.clustered_ratio(ours, base)
        missed += not estimate.low <= (0.7 * 8 + 3) / 8 <= estimate.high
    assert 0.02 < missed / runs < 0.08


def test_a_ratio_of_sums_and_counts_is_the_mean_over_everything() -> None:
    estimate = theory.clustered_ratio([3.0, 10.0, 2.0], [1, 4, 1], 6)
    assert estimate.value == 2.5
    assert (estimate.count, estimate.clusters) == (6, 3)
    same = theory.clustered_mean([0.5, 1.0, 0.75])
    assert theory.clustered_ratio([0.5, 1.0, 0.75], [1, 1, 1]) == pytest.approx(same)
    assert math.isnan(theory.clustered_ratio([1.0, 2.0], [0.0, 0.0]).value)


def shares(rng: np.random.Generator, win_rate: float, count: int, ties: float = 0.1) -> list[float]:
    """Returns one comparison per prompt, a tenth of them ties."""
    tied = rng.random(count) < ties
    won = rng.random(count) < (win_rate - ties / 2) / (1 - ties)
    return np.where(tied, 0.5, won).tolist()  # type: ignore[no-any-return]


def test_a_champion_that_is_no_better_is_rarely_promoted_however_often_one_looks() -> None:
    """In 400 runs of 500 checks, exceeding the bound has probability .1 % if the error rate is .05."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        test = theory.BettingTest()
        for x in shares(rng, 0.5, 500):
            test.add(x)
        wrong += test.rejects(0.05)
    assert wrong <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize(("win_rate", "median", "tolerance"), [(0.6, 153, 35), (0.7, 38, 8), (8 / 9, 12, 2)])
def test_a_better_one_is_promoted_soon(win_rate: float, median: int, tolerance: int) -> None:
    """300 runs: the median of the prompts needed, to within three of its standard errors."""
    rng = np.random.default_rng(1)
    needed = []
    for _ in range(300):
        test = theory.BettingTest()
        for x in shares(rng, win_rate, 2000):
            test.add(x)
            if test.rejects(0.05):
                break
        needed.append(test.count)
        assert test.p_value <= 0.05
    assert np.median(needed) == pytest.approx(median, abs=tolerance)


def test_the_betting_test_by_hand() -> None:
    """The first bet is on nothing: mean 1/2, no edge. After a win the mean is 3/4 and the variance 1/4."""
    test = theory.BettingTest()
    test.add(1.0)
    assert (test.log_capital, test.p_value, test.count) == (0.0, 1.0, 1)
    test.add(1.0)
    bet = 0.25 / (0.25 + 0.25**2)
    assert test.log_capital == pytest.approx(math.log1p(0.5 * bet))
    test.add(0.0)
    assert test.log_capital < test.highest
    assert test.p_value == pytest.approx(math.exp(-test.highest))
    assert not test.rejects()


@pytest.mark.parametrize("mean", [0.3, 0.6, 0.9])
def test_a_confidence_sequence_covers_at_all_times_together(mean: float) -> None:
    """In 150 runs of 600 checks, exceeding the bound has probability .1 % if the error rate is .05."""
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(150):
        sequence = theory.ConfidenceSequence(0.05)
        for x in shares(rng, mean, 600):
            low, high = sequence.add(x)
            if not low <= mean <= high:
                missed += 1
                break
    assert missed <= binom.ppf(0.999, 150, 0.05)


def test_a_confidence_sequence_closes_in() -> None:
    """Mean width at 1,000 observations as published, .115, of all intervals together a little less."""
    rng = np.random.default_rng(3)
    widths = []
    for _ in range(40):
        sequence = theory.ConfidenceSequence()
        before = sequence.interval
        for x in shares(rng, 0.6, 1000):
            now = sequence.add(x)
            assert before.low <= now.low <= now.high <= before.high
            before = now
        widths.append(before.high - before.low)
    assert np.mean(widths) == pytest.approx(0.11, abs=0.01)


def test_a_mean_that_moves_empties_the_sequence_without_crossing_it() -> None:
    sequence = theory.ConfidenceSequence()
    for x in [0.0] * 400 + [1.0] * 4000:
        interval = sequence.add(x)
    assert interval.low == interval.high


def test_what_is_no_share_is_refused() -> None:
    for x in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            theory.BettingTest().add(x)
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            theory.ConfidenceSequence().add(x)
    with pytest.raises(ValueError, match="inside"):
        theory.BettingTest(1.0)
