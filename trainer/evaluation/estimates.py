"""Estimates win rates over prompts and the diversity of answers."""

from collections.abc import Sequence
from dataclasses import replace
from math import isclose, nan

from bonbon.theory import Estimate, clustered_mean, wilson


def win_rate(per_prompt: Sequence[float], count: int) -> Estimate:
    """Returns the mean over prompts of X_p, each prompt's share of `count` comparisons won, with ties as half.

    When all prompts have the same share, there is no variance to estimate, and the interval is Wilson's for one
    comparison per prompt. Raises ValueError for fewer than two prompts.
    """
    estimate = clustered_mean(per_prompt, count)
    low, high = estimate.low, estimate.high
    if isclose(low, high, abs_tol=1e-12):
        low, high = wilson(sum(per_prompt), len(per_prompt))
    return replace(estimate, low=max(0.0, low), high=min(1.0, high))


def distinct(answers: Sequence[Sequence[int]], order: int) -> float:
    """Returns the share of distinct n-grams of `order` tokens (Li et al., arXiv 1510.03055), or NaN without n-grams."""
    grams = [tuple(answer[i : i + order]) for answer in answers for i in range(len(answer) - order + 1)]
    return len(set(grams)) / len(grams) if grams else nan
