"""Ranks and wins among scored candidates, ties counted half."""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

import numpy as np


def share_ties(by_rank: Sequence[float], rewards: Sequence[float]) -> list[float]:
    """`by_rank` (of the lowest rank first) for each candidate in the order of `rewards`; equal rewards share the mean
    of what their ranks get."""
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
    """Ranks from 1 (lowest) to n, tied values sharing the mean of theirs."""
    return share_ties(range(1, len(rewards) + 1), rewards)


def win_fraction(rewards: Sequence[float], opponents: Sequence[float]) -> float:
    """Share of (reward, opponent) pairs that are won, ties counting half: one prompt's X_p."""
    a, b = np.asarray(rewards)[:, None], np.asarray(opponents)[None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))
