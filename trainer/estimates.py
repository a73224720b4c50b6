"""Means, win rates and ratios over prompts, each with its 95 % interval; the prompt is always the cluster.

Intervals use Student's t with one degree of freedom less than there are prompts. Ratios are linearised (the delta
method): the ratio of two means over prompts has the variance of the mean of (a_p - R b_p) / mean(b).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import fsum, isclose, nan
from statistics import NormalDist

import numpy as np

from bonbon.theory import Estimate, clustered_mean, wilson


def student_t(degrees: int) -> float:
    """97.5 % quantile of Student's t.

    Exact for one and two degrees of freedom, else within 0.3 % by the Cornish-Fisher expansion (Abramowitz and Stegun,
    26.7.5).
    """
    if degrees < 1:
        raise ValueError(f"an interval needs at least two prompts, got {degrees + 1}")
    if degrees <= 2:
        return (12.706205, 4.302653)[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return fsum(term / degrees**k for k, term in enumerate(terms))


def mean(per_prompt: Sequence[float], count: int | None = None) -> Estimate:
    """Mean over prompts of a per-prompt mean of `count` values in all. Raises ValueError for fewer than two prompts."""
    return clustered_mean(per_prompt, count, z=student_t(len(per_prompt) - 1))


def win_rate(per_prompt: Sequence[float], count: int) -> Estimate:
    """Mean over prompts of X_p, each prompt's share of `count` comparisons won, ties as half.

    When no two prompts differ there is no variance to estimate: then the interval is Wilson's, for one comparison per
    prompt. Raises ValueError for fewer than two prompts.
    """
    estimate = mean(per_prompt, count)
    low, high = estimate.low, estimate.high
    if isclose(low, high, abs_tol=1e-12):
        low, high = wilson(sum(per_prompt), len(per_prompt))
    return replace(estimate, low=max(0.0, low), high=min(1.0, high))


def ratio(numerators: Sequence[float], denominators: Sequence[float], count: int | None = None) -> Estimate:
    """mean(numerators) / mean(denominators), one of each per prompt; not a number when the denominators' mean is 0."""
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    below = float(b.mean())
    if below == 0:
        return Estimate(nan, nan, nan, count if count is not None else a.size, a.size)
    value = float(a.mean()) / below
    return mean((value + (a - value * b) / below).tolist(), count)


def distinct(answers: Sequence[Sequence[int]], order: int) -> float:
    """Different n-grams of `order` tokens over all of them (Li et al., arXiv 1510.03055); not a number without any."""
    grams = [tuple(answer[i : i + order]) for answer in answers for i in range(len(answer) - order + 1)]
    return len(set(grams)) / len(grams) if grams else nan
