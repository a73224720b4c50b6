"""A sound evaluation to vary."""

from dataclasses import replace
from typing import Any

from bonbon.theory import Estimate
from trainer.evaluation.evaluation import Evaluation


def estimate(value: float, half: float = 0.02, count: int = 400) -> Estimate:
    return Estimate(value, value - half, value + half, count, 200)


GOOD = Evaluation(
    version="tiny-bonbon-0001",
    base="tiny",
    reference="tiny",
    n=8,
    prompts=200,
    answers=2,
    skipped=0,
    seed=0,
    temperature=1.0,
    max_tokens=96,
    reward="classifier",
    reward_version="3f2a",
    held_out_reward=None,
    win_rate=estimate(0.84, count=6400),
    win_rate_best_of_n=estimate(0.42, count=800),
    win_rate_reference=None,
    best_of_n_win_rate=estimate(0.888, 0.01, 3200),
    recovered=estimate(0.87, 0.04),
    held_out_win_rate=None,
    held_out_best_of_n_win_rate=None,
    reward_mean=estimate(2.1),
    base_reward_mean=estimate(0.1, count=3200),
    best_of_n_reward_mean=estimate(2.4),
    kl_estimator="Rao-Blackwellised per-token",
    kl=estimate(1.3, 0.1),
    kl_k1=estimate(1.35, 0.3),
    kl_reference=None,
    kl_reference_k1=None,
    length_mean=estimate(22.0, 0.5),
    base_length_mean=estimate(20.0, 0.5, 3200),
    length_ratio=estimate(1.1),
    truncated=0.01,
    base_truncated=0.0,
    distinct_1=0.05,
    distinct_2=0.2,
    base_distinct_1=0.06,
    base_distinct_2=0.25,
    seconds=12.0,
)


def evaluation(**changes: Any) -> Evaluation:
    return replace(GOOD, **changes)
