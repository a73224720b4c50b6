"""From samples to the estimates of an evaluation, by the names of its fields."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from bonbon.theory import Estimate, clustered_mean, clustered_ratio
from trainer.evaluation import estimates
from trainer.evaluation.divergence import Divergence
from trainer.evaluation.samples import Judge, Samples, Scored, by_held_out, by_reward, wins


def win_rates(samples: Sequence[Samples]) -> dict[str, Any]:
    n, answers = len(samples[0].groups[0]), len(samples[0].answers)

    def rate(one_prompt: Callable[[Samples], float], comparisons: int) -> Estimate:
        return estimates.win_rate([one_prompt(one) for one in samples], comparisons * len(samples))

    def against_base(judge: Judge) -> Estimate:
        return rate(lambda one: wins(one.answers, one.base, judge), answers * 2 * n)

    def best_of_n(judge: Judge) -> Estimate:
        return rate(lambda one: one.best_of_n_wins(judge), 2 * n)

    held_out = samples[0].base[0].held_out is not None
    return {
        "win_rate": against_base(by_reward),
        "win_rate_shares": [wins(one.answers, one.base, by_reward) for one in samples],
        "win_rate_best_of_n": rate(lambda one: wins(one.answers, one.best, by_reward), answers * 2),
        "win_rate_reference": rate(lambda one: wins(one.answers, one.reference, by_reward), answers * n)
        if samples[0].reference
        else None,
        "best_of_n_win_rate": best_of_n(by_reward),
        "held_out_win_rate": against_base(by_held_out) if held_out else None,
        "held_out_best_of_n_win_rate": best_of_n(by_held_out) if held_out else None,
    }


def rewards(samples: Sequence[Samples]) -> dict[str, Any]:
    ours = [_mean_reward(one.answers) for one in samples]
    base = [_mean_reward(one.base) for one in samples]
    best = [_mean_reward(one.best) for one in samples]
    answers, n = len(samples[0].answers), len(samples[0].groups[0])
    return {
        "reward_mean": clustered_mean(ours, answers * len(samples)),
        "base_reward_mean": clustered_mean(base, 2 * n * len(samples)),
        "best_of_n_reward_mean": clustered_mean(best, 2 * len(samples)),
        "recovered": clustered_ratio(
            [a - b for a, b in zip(ours, base, strict=True)],
            [a - b for a, b in zip(best, base, strict=True)],
            answers * len(samples),
        ),
    }


def lengths(samples: Sequence[Samples]) -> dict[str, Any]:
    ours, base = [one.answers for one in samples], [one.base for one in samples]
    # Distinct-n falls as there is more text: as many draws of the base as there are answers.
    alike = [one.base[: len(one.answers)] for one in samples]
    our_lengths = [fmean(len(draw.tokens) for draw in draws) for draws in ours]
    base_lengths = [fmean(len(draw.tokens) for draw in draws) for draws in base]
    count, base_count = sum(map(len, ours)), sum(map(len, base))
    return {
        "length_mean": clustered_mean(our_lengths, count),
        "base_length_mean": clustered_mean(base_lengths, base_count),
        "length_ratio": clustered_ratio(our_lengths, base_lengths, count),
        "truncated": sum(draw.truncated for draws in ours for draw in draws) / count,
        "base_truncated": sum(draw.truncated for draws in base for draw in draws) / base_count,
        "distinct_1": _distinct(ours, 1),
        "distinct_2": _distinct(ours, 2),
        "base_distinct_1": _distinct(alike, 1),
        "base_distinct_2": _distinct(alike, 2),
    }


def divergences(name: str, values: Sequence[Divergence] | None, answers: int) -> dict[str, Any]:
    if values is None:
        return {name: None, f"{name}_k1": None}
    clusters = [values[i : i + answers] for i in range(0, len(values), answers)]
    return {
        name: clustered_mean([fmean(one.rao_blackwell for one in cluster) for cluster in clusters], len(values)),
        f"{name}_k1": clustered_mean([fmean(one.k1 for one in cluster) for cluster in clusters], len(values)),
    }


def _mean_reward(draws: Sequence[Scored]) -> float:
    return fmean(draw.reward for draw in draws)


def _distinct(answers: Iterable[Sequence[Scored]], order: int) -> float:
    return estimates.distinct([draw.tokens for draws in answers for draw in draws], order)
