"""The best win rate that any policy can have at a given KL divergence from the reference.

The frontier consists of the reference tilted by exp(c U) (BoNBoN, theorem 1): no policy has a higher win rate at the
same KL, or a lower KL at the same win rate. Best-of-n is below it by at most .0095, at n = 1.78.
"""

import math
from collections.abc import Callable

SMALL = 0.1
"""Threshold below which the closed forms lose digits, and their series are used instead."""


def tilted_win_rate(c: float) -> float:
    """Returns the win rate of the reference tilted by exp(c U), 1 / (1 - e^-c) - 1 / c, for `c` >= 0."""
    if c < SMALL:
        return 0.5 + c / 12 - c**3 / 720 + c**5 / 30240
    return 1 / -math.expm1(-c) - 1 / c


def tilted_kl(c: float) -> float:
    """Returns the KL from the reference of the reference tilted by exp(c U), in nats, for `c` >= 0."""
    if c < SMALL:
        return c**2 / 24 - c**4 / 960 + c**6 / 36288
    rest = -math.expm1(-c)
    return c * math.exp(-c) / rest - 1 - math.log(rest) + math.log(c)


def frontier_win_rate(kl: float) -> float:
    """Returns the highest win rate against the reference at this KL. Raises ValueError when `kl` is negative."""
    if not kl >= 0:
        raise ValueError(f"a KL divergence is not negative, got {kl}")
    return tilted_win_rate(solve_increasing(tilted_kl, kl)) if math.isfinite(kl) else 1.0


def frontier_kl(win_rate: float) -> float:
    """Returns the lowest KL from the reference at which a policy can have this win rate; 0 up to a win rate of one
    half.

    Raises ValueError when `win_rate` is not in [0, 1).
    """
    if not 0 <= win_rate < 1:
        raise ValueError(f"a win rate at a finite KL is in [0, 1), got {win_rate}")
    return tilted_kl(solve_increasing(tilted_win_rate, win_rate)) if win_rate > 0.5 else 0.0


def frontier_gap(win_rate: float, kl: float) -> float:
    """Returns the distance of a win rate below the frontier at the policy's KL; negative only by an estimation
    error."""
    return frontier_win_rate(kl) - win_rate


def solve_increasing(increasing: Callable[[float], float], value: float) -> float:
    """Returns the c >= 0 at which an increasing function has this value, by bisection to the last digit."""
    low, high = 0.0, 1.0
    while increasing(high) < value:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if increasing(middle) < value else (low, middle)
    return middle
