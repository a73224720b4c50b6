"""The best win rate that any policy can have at a given KL divergence from the reference.

It belongs to the tiltings of the reference by exp(c U) (BoNBoN, theorem 1): no policy has a higher win rate at the same
KL, or a lower KL at the same win rate. Best-of-n is under it by at most .0095, at n = 1.78.
"""

import math
from collections.abc import Callable

SMALL = 0.1
"""Below it the closed forms lose digits, and their series have them all."""


def tilted_win_rate(c: float) -> float:
    """Win rate of the reference tilted by exp(c U), 1 / (1 - e^-c) - 1 / c; `c` >= 0."""
    if c < SMALL:
        return 0.5 + c / 12 - c**3 / 720 + c**5 / 30240
    return 1 / -math.expm1(-c) - 1 / c


def tilted_kl(c: float) -> float:
    """KL from the reference of the reference tilted by exp(c U), nats; `c` >= 0."""
    if c < SMALL:
        return c**2 / 24 - c**4 / 960 + c**6 / 36288
    rest = -math.expm1(-c)
    return c * math.exp(-c) / rest - 1 - math.log(rest) + math.log(c)


def frontier_win_rate(kl: float) -> float:
    """The highest win rate against the reference at this KL from it. Raises ValueError when `kl` is negative."""
    if not kl >= 0:
        raise ValueError(f"a KL divergence is not negative, got {kl}")
    return tilted_win_rate(solve_increasing(tilted_kl, kl)) if math.isfinite(kl) else 1.0


def frontier_kl(win_rate: float) -> float:
    """The lowest KL from the reference at which a policy can win this often; 0 up to a half.

    Raises ValueError when `win_rate` is not in [0, 1).
    """
    if not 0 <= win_rate < 1:
        raise ValueError(f"a win rate at a finite KL is in [0, 1), got {win_rate}")
    return tilted_kl(solve_increasing(tilted_win_rate, win_rate)) if win_rate > 0.5 else 0.0


def frontier_gap(win_rate: float, kl: float) -> float:
    """How far a policy's win rate is under the frontier at its own KL; negative only by an error of estimation."""
    return frontier_win_rate(kl) - win_rate


def solve_increasing(increasing: Callable[[float], float], value: float) -> float:
    """The c >= 0 at which an increasing function has this value, by bisection to the last digit."""
    low, high = 0.0, 1.0
    while increasing(high) < value:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if increasing(middle) < value else (low, middle)
    return middle
