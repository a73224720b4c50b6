"""A valid evaluation that tests modify."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bonbon.theory import Estimate
from trainer.evaluation.evaluation import BestOfK, Evaluation


def estimate(value: float, half: float = 0.02, count: int = 400) -> Estimate:
    return Estimate(value, value - half, value + half, count, 200)


def best_of_k(
    *rates: float,
    served: Sequence[float] | None = None,
    half: float = 0.02,
    length: float = 22.0,
    held_out: float | None = None,
) -> list[BestOfK]:
    """For k = 1, 2, ...: these win rates against best-of-n of the base and, by default, against what is served;
    `length` tokens a draw.
    """
    by_held_out = None if held_out is None else estimate(held_out)
    return [
        BestOfK(
            k=k,
            win_rate=estimate(1 - 0.16 / k),
            win_rate_best_of_n=estimate(rate, half, 1600),
            held_out_win_rate_best_of_n=by_held_out,
            win_rate_served=estimate(rate if served is None else served[k - 1], half, 1600),
            held_out_win_rate_served=by_held_out,
            tokens=k * length,
        )
        for k, rate in enumerate(rates, 1)
    ]


GOOD = Evaluation(
    version="tiny-bonbon-0001",
    base="tiny",
    served="tiny",
    served_k=8,
    n=8,
    prompts=200,
    draws=8,
    skipped=0,
    seed=0,
    temperature=1.0,
    max_tokens=96,
    reward="classifier",
    reward_version="3f2a",
    held_out_reward=None,
    win_rate=estimate(0.84, count=25600),
    win_rate_shares=[0.7, 0.8, 0.86, 1.0] * 50,
    best_of_n_win_rate=estimate(0.888, 0.01, 3200),
    # Lower bounds of .40, .51 and more: the best of two is the first that is as good as best-of-8 of the base.
    best_of_k=best_of_k(0.42, 0.53, 0.6, 0.64, 0.67, 0.69, 0.71, 0.72),
    recovered=estimate(0.87, 0.04),
    gain=estimate(1.78, 0.2),
    held_out_win_rate=None,
    held_out_best_of_n_win_rate=None,
    held_out_share=None,
    best_of_n_held_out_share=None,
    reward_mean=estimate(2.1),
    base_reward_mean=estimate(0.1, count=3200),
    best_of_n_reward_mean=estimate(2.4),
    kl_estimator="Rao-Blackwellised per-token",
    kl=estimate(1.3, 0.1),
    kl_k1=estimate(1.35, 0.3),
    length_mean=estimate(22.0, 0.5),
    base_length_mean=estimate(20.0, 0.5, 3200),
    length_ratio=estimate(1.1),
    served_tokens=160.0,
    truncated=0.01,
    base_truncated=0.0,
    sufficient_max_tokens=None,
    distinct_1=0.05,
    distinct_2=0.2,
    base_distinct_1=0.06,
    base_distinct_2=0.25,
    seconds=12.0,
)


def evaluation(**changes: Any) -> Evaluation:
    return replace(GOOD, **changes)
