"""Schedules of a run as functions of its settings alone, so that checkpoints need not store them."""

import math
from typing import Literal

import numpy as np

from bonbon.settings import TrainSettings


def count_steps(config: TrainSettings, groups: int) -> int:
    """Returns the number of optimiser steps of the offline stage on this many groups."""
    return max(1, math.ceil(config.epochs * (groups // config.batch_size)))


def default_learning_rate(method: Literal["lora", "full"], width: int) -> float:
    """Returns 5e-5 (2000 / width)^0.781, and ten times that for an adapter; `width` is the model's hidden size.

    From Schulman and Thinking Machines Lab, "LoRA Without Regret" (2025): the best rates of Llama models with
    lora_alpha 32.
    """
    rate: float = 5e-5 * (2000 / width) ** 0.781
    return 10 * rate if method == "lora" else rate


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Returns the factor of a linear warm-up to 1 and a linear decay to 0 just after the last step; `step` counts from
    0.
    """
    warmup = int(steps * warmup_fraction)
    return (step + 1) / (warmup + 1) if step < warmup else (steps - step) / (steps - warmup)


def step_seed(seed: int, stage: int, step: int) -> int:
    """Returns the seed of the random numbers in a step of a stage."""
    return int(np.random.SeedSequence([seed, stage, step]).generate_state(1)[0])
