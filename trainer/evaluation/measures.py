"""Computes the estimates of an evaluation from its samples, by the names of the evaluation's fields."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonbon.theory import (
    Estimate,
    best_of_k_means,
    best_of_k_weights,
    best_of_k_win_rates,
    clustered_mean,
    clustered_ratio,
    objective_gain,
)
from trainer.evaluation import estimates
from trainer.evaluation.divergence import Divergence
from trainer.evaluation.evaluation import BestOfK
from trainer.evaluation.samples import Judge, Samples, Scored, by_held_out, by_reward

Array = NDArray[np.float64]
Opponents = Callable[[Samples], Sequence[Scored]]


def win_rates(samples: Sequence[Samples], n: int) -> dict[str, Any]:
    """Returns the win rates of one draw and of best-of-n of the base against one draw of the base, by both rewards."""
    base_draws, count = len(samples[0].base), len(samples[0].version) * len(samples)

    def one_draw(judge: Judge) -> list[float]:
        return [float(_wins(one.version, one.base, judge).mean()) for one in samples]

    def best_of_n(judge: Judge) -> list[float]:
        # The base's candidates outside the n are independent draws of the base.
        return [_own_win_rate(one.base, n, judge) for one in samples]

    def rate(per_prompt: Sequence[float], comparisons: int) -> Estimate:
        return estimates.win_rate(per_prompt, comparisons)

    shares, best_shares = one_draw(by_reward), best_of_n(by_reward)
    found: dict[str, Any] = {
        "win_rate": rate(shares, count * base_draws),
        "win_rate_shares": shares,
        "best_of_n_win_rate": clustered_mean(best_shares, base_draws * len(samples)),
        "held_out_win_rate": None,
        "held_out_best_of_n_win_rate": None,
        "held_out_share": None,
        "best_of_n_held_out_share": None,
    }
    if _has_held_out(samples):
        held_out, best_held_out = one_draw(by_held_out), best_of_n(by_held_out)
        found |= {
            "held_out_win_rate": rate(held_out, count * base_draws),
            "held_out_best_of_n_win_rate": clustered_mean(best_held_out, base_draws * len(samples)),
            "held_out_share": _gain_ratio(held_out, shares),
            "best_of_n_held_out_share": _gain_ratio(best_held_out, best_shares),
        }
    return found


def best_of_k(samples: Sequence[Samples], *, n: int, served_k: int, most_k: int) -> list[BestOfK]:
    """Returns the figures of the version's best-of-k for every k up to `most_k`, against one draw and best-of-n of the
    base and against what is served.
    """
    draws, prompts = len(samples[0].version), len(samples)
    lengths = [fmean(len(draw.tokens) for draw in one.version) for one in samples]

    def against(opponents: Opponents, best_of: int, judge: Judge) -> list[Estimate]:
        rates = _win_rates_by_k(samples, opponents, best_of, judge)
        return [estimates.win_rate(column.tolist(), draws * prompts) for column in rates.T[:most_k]]

    def held_out(opponents: Opponents, best_of: int) -> Sequence[Estimate | None]:
        return against(opponents, best_of, by_held_out) if _has_held_out(samples) else [None] * most_k

    found = zip(
        against(_base, 1, by_reward),
        against(_base, n, by_reward),
        held_out(_base, n),
        against(_served, served_k, by_reward),
        held_out(_served, served_k),
        strict=True,
    )
    tokens = clustered_mean(lengths, draws * prompts).value
    return [BestOfK(k, *rates, tokens=k * tokens) for k, rates in enumerate(found, 1)]


def rewards(samples: Sequence[Samples], n: int) -> dict[str, Any]:
    ours = [_mean_reward(one.version) for one in samples]
    base = [_mean_reward(one.base) for one in samples]
    best = [float(best_of_k_means([draw.reward for draw in one.base])[n - 1]) for one in samples]
    draws, base_draws = len(samples[0].version), len(samples[0].base)
    return {
        "reward_mean": clustered_mean(ours, draws * len(samples)),
        "base_reward_mean": clustered_mean(base, base_draws * len(samples)),
        "best_of_n_reward_mean": clustered_mean(best, base_draws * len(samples)),
        "recovered": clustered_ratio(
            [a - b for a, b in zip(ours, base, strict=True)],
            [a - b for a, b in zip(best, base, strict=True)],
            draws * len(samples),
        ),
    }


def lengths(samples: Sequence[Samples], *, served_k: int) -> dict[str, Any]:
    ours, base = [one.version for one in samples], [one.base for one in samples]
    # Distinct-n falls as the amount of text grows, so both sides use the same number of answers.
    alike = [one.base[:: max(1, len(one.base) // len(one.version))][: len(one.version)] for one in samples]
    our_lengths = [fmean(len(draw.tokens) for draw in draws) for draws in ours]
    base_lengths = [fmean(len(draw.tokens) for draw in draws) for draws in base]
    served = fmean(fmean(len(draw.tokens) for draw in one.served) for one in samples)
    count, base_count = sum(map(len, ours)), sum(map(len, base))
    return {
        "length_mean": clustered_mean(our_lengths, count),
        "base_length_mean": clustered_mean(base_lengths, base_count),
        "length_ratio": clustered_ratio(our_lengths, base_lengths, count),
        "served_tokens": served_k * served,
        "truncated": sum(draw.truncated for draws in ours for draw in draws) / count,
        "base_truncated": sum(draw.truncated for draws in base for draw in draws) / base_count,
        "sufficient_max_tokens": sufficient_max_tokens(draw for draws in base for draw in draws),
        "distinct_1": _distinct(ours, 1),
        "distinct_2": _distinct(ours, 2),
        "base_distinct_1": _distinct(alike, 1),
        "base_distinct_2": _distinct(alike, 2),
    }


def divergences(samples: Sequence[Samples], values: Sequence[Divergence], answers: int, n: int) -> dict[str, Any]:
    """Returns the KL from the base and the gain in J, estimated from `answers` draws per prompt."""
    clusters = [values[i : i + answers] for i in range(0, len(values), answers)]
    exact = [fmean(one.rao_blackwell for one in cluster) for cluster in clusters]
    shares = [float(_wins(one.version, one.base, by_reward).mean()) for one in samples]
    gains = [objective_gain(share, kl, n) for share, kl in zip(shares, exact, strict=True)]
    return {
        "kl": clustered_mean(exact, len(values)),
        "kl_k1": clustered_mean([fmean(one.k1 for one in cluster) for cluster in clusters], len(values)),
        "gain": clustered_mean(gains, len(values)),
    }


MAX_TRUNCATED = 0.1
"""The share of truncated answers above which an evaluation warns."""


def sufficient_max_tokens(draws: Iterable[Scored]) -> int | None:
    """Estimates how many tokens let nine of ten answers end by themselves.

    Returns None when nine of ten already do, or when no answer has ended. The estimate assumes that answers keep ending
    at the rate observed in the second half of the drawn lengths.
    """
    drawn = list(draws)
    truncated = [len(draw.tokens) for draw in drawn if draw.truncated]
    share = len(truncated) / len(drawn)
    if share <= MAX_TRUNCATED:
        return None
    longest = max(truncated)
    half = longest // 2
    ended = sum(half < len(draw.tokens) and not draw.truncated for draw in drawn)
    exposed = sum(max(0, len(draw.tokens) - half) for draw in drawn)
    if not ended:
        return None
    return math.ceil(longest + math.log(share / MAX_TRUNCATED) * exposed / ended)


def _base(one: Samples) -> Sequence[Scored]:
    return one.base


def _served(one: Samples) -> Sequence[Scored]:
    return one.served


def _win_rates_by_k(samples: Sequence[Samples], opponents: Opponents, best_of: int, judge: Judge) -> Array:
    """Returns unbiased win rates of best-of-k against the best of `best_of` of the opponents' draws, [prompts, k].

    The reward selects the best on both sides; `judge` compares the two.
    """
    found = []
    for one in samples:
        theirs = opponents(one)
        wins = _wins(one.version, theirs, judge) @ best_of_k_weights(len(theirs), best_of)
        found.append(best_of_k_means(wins.tolist()))
    return np.stack(found)


def _own_win_rate(draws: Sequence[Scored], n: int, judge: Judge) -> float:
    """Returns the unbiased win rate of best-of-n against another draw of the same policy, compared by `judge`."""
    return float(best_of_k_win_rates([judge(draw) for draw in draws])[n - 1])


def _wins(ours: Sequence[Scored], theirs: Sequence[Scored], judge: Judge) -> Array:
    """Returns the result of each of our draws against each of theirs, 1 for a win and .5 for a tie, [ours, theirs]."""
    a, b = (np.array([judge(draw) for draw in draws])[:, None] for draws in (ours, theirs))
    return np.asarray((a > b.T) + 0.5 * (a == b.T))


def _gain_ratio(held_out: Sequence[float], trained: Sequence[float]) -> Estimate:
    """Returns the win rate above one half by the held-out reward, divided by the win rate above one half by the
    reward."""
    return clustered_ratio([rate - 0.5 for rate in held_out], [rate - 0.5 for rate in trained])


def _has_held_out(samples: Sequence[Samples]) -> bool:
    return samples[0].base[0].held_out is not None


def _mean_reward(draws: Sequence[Scored]) -> float:
    return fmean(draw.reward for draw in draws)


def _distinct(answers: Iterable[Sequence[Scored]], order: int) -> float:
    return estimates.distinct([draw.tokens for draws in answers for draw in draws], order)
