"""Estimators of KL(policy || reference) from completions sampled from the policy, in nats.

k1 and k3 are Schulman's names ("Approximating KL divergence", 2020).

Do not use k3 on whole completions of best-of-n or of a policy distilled from it. Its ratio pi_0/pi = 1 / (n U^(n-1))
has E[(pi_0/pi)^2] = (1/n) E_0[U^(1-n)], which is infinite for every n >= 2, so the variance of the mean never falls. At
n = 8, ten means of 100,000 completions each lay between .95 and 1.36, and those of k1 within .01 of the KL, 1.20. Token
by token, k3 has finite variance where the next-token distributions of the two policies are close; the Rao-Blackwellised
estimator is better there as well.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def k1(log_ratios: ArrayLike) -> Array:
    """Returns log pi/pi_0 itself: unbiased, of either sign; for best-of-n its variance is ((n - 1) / n)^2."""
    return np.asarray(log_ratios, dtype=np.float64)


def k3(log_ratios: ArrayLike) -> Array:
    """Returns pi_0/pi - 1 + log pi/pi_0: unbiased and never negative. For single tokens only; see the module's
    docstring.
    """
    x = k1(log_ratios)
    return np.asarray(np.expm1(-x) + x)


def rao_blackwell(policy: ArrayLike, reference: ArrayLike) -> float:
    """Returns the sum over a completion's positions of the exact KL of the next token's distribution given the prefix.

    Unbiased over completions of the policy, never negative, and with no more variance than k1 (Amini et al., arXiv
    2504.10637).

    Args:
        policy, reference: Log-probabilities of every token at each position, [positions, vocabulary].
    """
    ours, theirs = np.asarray(policy, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    # A token of probability zero under the policy contributes nothing, however unlikely it is under the reference.
    seen = ours > -np.inf
    return float(np.sum(np.exp(ours[seen]) * (ours[seen] - theirs[seen])))
