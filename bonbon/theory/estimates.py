"""Estimates best-of-k for every k up to n from logged groups of n, without new draws.

The k candidates are drawn from the n without replacement, and all C(n, k) ways are averaged (U-statistics). This is
unbiased and has less variance than the first k candidates alone (.34 of it at k = 3, n = 8).
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def best_of_k_weights(n: int, k: int) -> Array:
    """Returns each rank's probability of being the best of k of the n, C(i-1, k-1) / C(n, k), lowest first, [n].

    With k = n' these are the candidates' weights in the supervised term that imitates best-of-n' from stored groups of
    n, without discarding any. Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}")
    return np.array([comb(i - 1, k - 1) / comb(n, k) for i in range(1, n + 1)])


def best_of_k_means(values: Sequence[float]) -> Array:
    """Returns unbiased estimates of the mean of any value under best-of-k, for k = 1 to n, [n].

    Args:
        values: Values of the candidates in the order of their rank, lowest first, ties of rank broken at random.
    """
    return _mean_weights(len(values)) @ np.asarray(values, dtype=np.float64)


def best_of_k_rewards(rewards: Sequence[float]) -> Array:
    """Returns unbiased estimates of best-of-k's expected reward for k = 1 to n from one group of n scored candidates,
    [n].
    """
    return best_of_k_means(sorted(rewards))


def best_of_k_win_rates(scores: Sequence[float]) -> Array:
    """Returns unbiased estimates of best-of-k's win rate against one draw, ties as half, for k = 1 to n - 1, [n - 1].

    The opponent is one of the n - k candidates outside the k. If the scores are the rewards that ranked the candidates
    and none are equal, the result is k / (k + 1) in any case; it is informative only for another judge or with ties.

    Args:
        scores: The judge's scores in the order of the candidates' rank, lowest first, ties of rank broken at random.
    """
    s = np.asarray(scores, dtype=np.float64)
    wins = (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])
    weights = _win_weights(len(s))
    return np.asarray(weights.above @ np.triu(wins, 1).sum(1) + weights.below @ np.tril(wins, -1).sum(1))


@lru_cache(maxsize=256)
def _mean_weights(n: int) -> Array:
    return np.stack([best_of_k_weights(n, k) for k in range(1, n + 1)])


class _WinWeights(NamedTuple):
    """Weights of a candidate's wins over those ranked above and below it, [k, rank]."""

    above: Array
    below: Array


@lru_cache(maxsize=256)
def _win_weights(n: int) -> _WinWeights:
    """Returns C(i-1, k-1) and C(i-2, k-1) over C(n, k) (n - k).

    They count the sets of k whose best has rank i and which leave out the opponent. An opponent that ranks below i
    leaves i - 2 others for the set.
    """
    above, below = (
        [
            [comb(i - left, k - 1) / (comb(n, k) * (n - k)) if i >= left else 0.0 for i in range(1, n + 1)]
            for k in range(1, n)
        ]
        for left in (1, 2)
    )
    return _WinWeights(np.array(above).reshape(n - 1, n), np.array(below).reshape(n - 1, n))
