"""The objective by which policies distilled from best-of-n are compared.

Among policies at best-of-n's own KL, the one that wins most often is pi_c, the reference tilted by exp(c U), where U is
the win probability against one draw of the reference (BoNBoN, theorem 1). pi_c maximises

    J(pi) = c E_pi[U] - KL(pi || pi_0) <= log((e^c - 1) / c),

because KL(pi || pi_c) = max J - J(pi): J measures in nats how far a policy is from the best one. The reference itself
has J = c / 2.
"""

import math
from functools import lru_cache

from bonbon.theory.closed_forms import best_of_n_kl
from bonbon.theory.frontier import SMALL, solve_increasing, tilted_kl


@lru_cache(maxsize=256)
def tilt(n: float) -> float:
    """Returns the c at which the tilted reference has best-of-n's KL, log n - (n - 1) / n. `n` may be any real > 1.

    Raises:
        ValueError: `n` is not above 1.
    """
    if not n > 1:
        raise ValueError(f"the tilt of best-of-n exists for n > 1, got {n}")
    return tilt_for_kl(best_of_n_kl(n))


@lru_cache(maxsize=256)
def tilt_for_kl(kl: float) -> float:
    """Returns the c at which the tilted reference has this KL from the reference; `kl` is in nats and above 0."""
    return solve_increasing(tilted_kl, kl)


def objective(win_rate: float, kl: float, n: float) -> float:
    """Returns J of a policy, c W - KL in nats, where W is its win rate against the reference and KL its divergence from
    it.
    """
    return tilt(n) * win_rate - kl


def objective_gain(win_rate: float, kl: float, n: float) -> float:
    """Returns how far J is above the reference's own, which has win rate 1/2 and KL 0; at most `best_gain(n)`."""
    return tilt(n) * (win_rate - 0.5) - kl


def best_gain(n: float) -> float:
    """Returns the highest gain in J of any policy, log((e^c - 1) / c) - c / 2 nats."""
    return _log_mean_exp(tilt(n))


def _log_mean_exp(c: float) -> float:
    """Returns log((e^c - 1) / c) - c / 2 = log(sinh(c / 2) / (c / 2))."""
    if c < SMALL:
        return c**2 / 24 - c**4 / 2880
    return c / 2 + math.log(-math.expm1(-c) / c)
