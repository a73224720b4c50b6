"""Closed forms and estimators of best-of-n.

U is a candidate's win probability against a fresh draw of the reference policy; without ties it is uniform on (0, 1).
"BoNBoN" below is Gui, Garbacea and Veitch, arXiv 2406.00832; "Beirami" is Beirami et al., arXiv 2401.01879.
Logarithms are natural, KL divergences are in nats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def best_of_n_win_rate(n: float) -> float:
    """Win rate of best-of-n against the reference, n / (n + 1) (BoNBoN, section 3)."""
    return n / (n + 1)


def best_of_n_kl(n: float) -> float:
    """KL(best-of-n || reference) without ties, log n - (n - 1) / n; with ties an upper bound (Beirami, theorem 1)."""
    return math.log(n) - (n - 1) / n


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n."""
    return math.fsum(1 / k for k in range(1, n + 1))


def pair_target(n: int) -> float:
    """Mean of log pi_n/pi_0 (best) - log pi_n/pi_0 (worst) over best-of-n's own groups, (n - 1) H_(n-1) nats.

    Half the inverse of the paper's beta*_n (BoNBoN, section 4; by Renyi's representation of order statistics).
    """
    return (n - 1) * harmonic(n - 1)


def pair_target_variance(n: int) -> float:
    """Variance of the same contrast, (n - 1)^2 sum_(k<n) 1/k^2."""
    return (n - 1) ** 2 * math.fsum(1 / k**2 for k in range(1, n))


def mid_ranks(rewards: Sequence[float]) -> list[float]:
    """Ranks from 1 (lowest) to n, tied values sharing the mean of theirs."""
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    ranks = [0.0] * len(rewards)
    below = 0
    for _, tied in groupby(order, key=rewards.__getitem__):
        members = list(tied)
        for i in members:
            ranks[i] = below + (len(members) + 1) / 2
        below += len(members)
    return ranks


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; `count` is how many comparisons it rests on, `clusters` how many prompts."""

    value: float
    low: float
    high: float
    count: int
    clusters: int


def wilson(wins: float, count: int, z: float = 1.959964) -> Interval:
    """Wilson score interval of a proportion; for one comparison per prompt, a tie counting half a win."""
    if count == 0:
        return Interval(0.0, 1.0)
    p = wins / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Interval(centre - half, centre + half)


def clustered_mean(per_prompt: Sequence[float], count: int | None = None, *, z: float = 1.959964) -> Estimate:
    """Mean over prompts of a per-prompt mean; the prompt is the cluster: se^2 = sum (X_p - mean)^2 / (P (P - 1)).

    Args:
        per_prompt: one value per prompt (for win rates: mean over its comparisons, ties as half).
        count: comparisons in all, for the record; by default one per prompt.

    Raises:
        ValueError: fewer than two prompts.
    """
    x: NDArray[np.float64] = np.asarray(per_prompt, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"an interval needs at least two prompts, got {x.size}")
    mean, se = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(x.size)
    return Estimate(mean, mean - z * se, mean + z * se, count if count is not None else int(x.size), int(x.size))


def win_fraction(rewards: Sequence[float], opponents: Sequence[float]) -> float:
    """Share of (reward, opponent) pairs that are won, ties counting half: one prompt's X_p."""
    a, b = np.asarray(rewards)[:, None], np.asarray(opponents)[None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))
