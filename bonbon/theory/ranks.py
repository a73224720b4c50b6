"""Ranks and wins among scored candidates, with ties counted half."""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

import numpy as np


def share_ties(by_rank: Sequence[float], rewards: Sequence[float]) -> list[float]:
    """Assigns `by_rank` (lowest rank first) to candidates in the order of `rewards`.

    Candidates with equal rewards share the mean of the values of their ranks.
    """
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    shared = [0.0] * len(rewards)
    below = 0
    for _, tied in groupby(order, key=rewards.__getitem__):
        members = list(tied)
        mean = fmean(by_rank[below : below + len(members)])
        for i in members:
            shared[i] = mean
        below += len(members)
    return shared


def mid_ranks(rewards: Sequence[float]) -> list[float]:
    """Returns ranks from 1 (lowest) to n; tied values share the mean of their ranks."""
    return share_ties(range(1, len(rewards) + 1), rewards)


def win_fraction(rewards: Sequence[float], opponents: Sequence[float]) -> float:
    """Returns the share of (reward, opponent) pairs that are won, with ties as half: one prompt's X_p."""
    a, b = np.asarray(rewards)[:, None], np.asarray(opponents)[None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))
