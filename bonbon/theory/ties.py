"""Best-of-n for rewards with few distinct values: ties lower both the win rate and the KL below their closed forms.

A reward with levels a = 1 < 2 < ... of mass p_a under the reference has F_a = p_1 + ... + p_a. Best-of-n has level a
with probability q_a = F_a^n - F_(a-1)^n; ties are broken uniformly and count half.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Masses = NDArray[np.float64]


def best_level_masses(masses: Sequence[float], n: float) -> Masses:
    """Returns q_a, the distribution of best-of-n's reward level, [levels].

    Args:
        masses: p_a of each reward level, from the lowest to the highest.

    Raises:
        ValueError: The masses are not probabilities.
    """
    p = _probabilities(masses)
    above = np.minimum(np.cumsum(p), 1.0)
    above[-1] = 1.0
    return np.diff(above**n, prepend=0.0)


def tied_win_rate(masses: Sequence[float], n: float) -> float:
    """Returns the win rate of best-of-n, sum q_a (F_(a-1) + p_a / 2): between n / (n + 1) - `tie_loss` and n / (n +
    1)."""
    p, q = _probabilities(masses), best_level_masses(masses, n)
    return float(np.sum(q * (np.cumsum(p) - p / 2)))


def tie_loss(masses: Sequence[float], n: float) -> float:
    """Returns half the probability that best-of-n ties with a draw of the reference, sum q_a p_a / 2.

    It bounds the win rate that ties can cost.
    """
    return float(np.sum(best_level_masses(masses, n) * _probabilities(masses))) / 2


def tied_kl(masses: Sequence[float], n: float) -> float:
    """Returns KL(best-of-n || reference), sum q_a log(q_a / p_a) nats: at most log n - (n - 1) / n (Beirami, theorem
    1).
    """
    p, q = _probabilities(masses), best_level_masses(masses, n)
    seen = q > 0
    return float(np.sum(q[seen] * np.log(q[seen] / p[seen])))


def _probabilities(masses: ArrayLike) -> Masses:
    p = np.asarray(masses, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-9:
        raise ValueError(f"the masses of the reward levels must be probabilities that add up to 1, got {p}")
    return p
