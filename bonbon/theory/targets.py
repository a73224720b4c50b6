"""Training targets: log pi_n/pi_0 of a candidate, given its rank among n.

For rank k (1 the lowest) among n candidates, U is the k-th smallest of n uniform variables, and best-of-n' has log
pi_n'/pi_0 = log n' + (n' - 1) log U. By Renyi's representation log U_(i) - log U_(j) = sum_(j<=k<i) Z_k / k with Z_k
independent and exponential. The target n' may be any real > 1 and need not be the stored n. Above the stored n it is an
extrapolation, whose noise grows with n' - 1.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bonbon.theory.ranks import share_ties


def harmonic(n: int) -> float:
    """Returns 1 + 1/2 + ... + 1/n."""
    return math.fsum(1 / k for k in range(1, n + 1))


def rank_pair_target(upper: int, lower: int, n: float) -> float:
    """Returns the mean of log pi_n/pi_0 (upper) - log pi_n/pi_0 (lower), (n - 1) (H_(upper-1) - H_(lower-1)) nats.

    Args:
        upper, lower: Ranks among any number of stored candidates, upper > lower >= 1.
        n: The n of the best-of-n that is imitated.

    Raises:
        ValueError: The ranks are in another order.
    """
    return (n - 1) * math.fsum(1 / k for k in _between(upper, lower))


def rank_pair_variance(upper: int, lower: int, n: float) -> float:
    """Returns the variance of the same contrast, (n - 1)^2 sum_(lower<=k<upper) 1/k^2."""
    return (n - 1) ** 2 * math.fsum(1 / k**2 for k in _between(upper, lower))


def pair_target(n: int) -> float:
    """Returns the target of best and worst of best-of-n's own groups, (n - 1) H_(n-1) nats, which is 1 / (2
    beta*_n)."""
    return (n - 1) * harmonic(n - 1)


def pair_target_variance(n: int) -> float:
    """Returns the variance of the same contrast, (n - 1)^2 sum_(k<n) 1/k^2."""
    return (n - 1) ** 2 * math.fsum(1 / k**2 for k in range(1, n))


def beta(n: int) -> float:
    """Returns the paper's beta*_n, 1 / (2 (n - 1) H_(n-1)) (BoNBoN, section 4), for n >= 2."""
    return 1 / (2 * pair_target(n))


def quietest_partner(n: int) -> int:
    """Returns the rank whose contrast with the best of `n` >= 2 has the least noise relative to its size.

    It is the worst (1) up to n = 4 and a higher rank after that, because the worst candidate's log U has a long tail.
    """

    def noise(lower: int) -> float:
        return math.sqrt(rank_pair_variance(n, lower, 2)) / rank_pair_target(n, lower, 2)

    return min(range(1, n), key=noise)


def rank_targets(n: int, target_n: float | None = None) -> NDArray[np.float64]:
    """Returns Rank-BoN targets: log pi_n'/pi_0 of each rank among `n` candidates, lowest first, [n].

    t_k = log n' - (n' - 1) (H_(n-1) - H_(k-1)), which is log n' + (n' - 1) (psi(k) - psi(n)). With psi(n), from a
    candidate's rank among the n - 1 others, exp(t) has mean 1 to within 2e-4 at n = n' = 8; psi(n + 1) would be off by
    (n' - 1)/n.

    Args:
        target_n: n', of the best-of-n' that is imitated; by default n.
    """
    target_n = n if target_n is None else target_n
    below = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n))])
    return np.asarray(math.log(target_n) - (target_n - 1) * (below[-1] - below), dtype=np.float64)


def tied_rank_targets(rewards: Sequence[float], target_n: float | None = None) -> NDArray[np.float64]:
    """Returns the same targets for scored candidates, in their order, [n]; equal rewards share the mean of their
    targets.
    """
    return np.array(share_ties(rank_targets(len(rewards), target_n).tolist(), rewards))


def _between(upper: int, lower: int) -> range:
    if not upper > lower >= 1:
        raise ValueError(f"a pair has two ranks, the upper one above the lower one >= 1; got {upper} and {lower}")
    return range(lower, upper)
