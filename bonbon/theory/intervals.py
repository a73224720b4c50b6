"""Intervals for a number of comparisons that is fixed in advance. The prompt is always the cluster.

For monitoring while comparisons arrive, see `bonbon.theory.anytime`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval, from `count` comparisons or samples on `clusters` prompts."""

    value: float
    low: float
    high: float
    count: int
    clusters: int


def student_t(degrees: int) -> float:
    """Returns the 97.5 % quantile of Student's t.

    Exact for one and two degrees of freedom, otherwise within 0.3 % by the Cornish-Fisher expansion (Abramowitz and
    Stegun, 26.7.5).
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
    return math.fsum(term / degrees**k for k, term in enumerate(terms))


def wilson(wins: float, count: int, z: float = 1.959964) -> Interval:
    """Returns the Wilson score interval of a proportion, for one comparison per prompt, with a tie as half a win."""
    if count == 0:
        return Interval(0.0, 1.0)
    p = wins / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Interval(centre - half, centre + half)


def clustered_mean(per_prompt: Sequence[float], count: int | None = None) -> Estimate:
    """Returns the mean over prompts with the prompt as cluster: se^2 = sum (X_p - mean)^2 / (P (P - 1)).

    The interval is Student's t with P - 1 degrees of freedom.

    Args:
        per_prompt: One value per prompt (for win rates, the mean over its comparisons, ties as half).
        count: The total number of comparisons, for the record; by default one per prompt.

    Raises:
        ValueError: There are fewer than two prompts.
    """
    x = np.asarray(per_prompt, dtype=np.float64)
    t = student_t(x.size - 1)
    mean, se = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(x.size)
    return Estimate(mean, mean - t * se, mean + t * se, count if count is not None else int(x.size), int(x.size))


def clustered_ratio(numerators: ArrayLike, denominators: ArrayLike, count: int | None = None) -> Estimate:
    """Returns mean(numerators) / mean(denominators), one of each per prompt, or NaN when the denominators' mean is 0.

    The interval is linearised (the delta method): the ratio has the variance of the mean of (a_p - R b_p) / mean(b).
    With sums and counts per prompt, the ratio is the mean over all comparisons, where prompts have different numbers of
    them.

    Raises:
        ValueError: There are fewer than two prompts.
    """
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    below = float(b.mean())
    if below == 0:
        return Estimate(math.nan, math.nan, math.nan, count if count is not None else a.size, a.size)
    value = float(a.mean()) / below
    return clustered_mean((value + (a - value * b) / below).tolist(), count)
