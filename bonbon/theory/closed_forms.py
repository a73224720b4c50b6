"""Closed forms of best-of-n's win rate and divergence."""

import math


def best_of_n_win_rate(n: float) -> float:
    """Returns best-of-n's win rate against the reference, n / (n + 1) (BoNBoN, section 3). `n` may be any real >= 1."""
    return n / (n + 1)


def best_of_n_kl(n: float) -> float:
    """Returns KL(best-of-n || reference), log n - (n - 1) / n, an upper bound in case of ties (Beirami, theorem 1)."""
    return math.log(n) - (n - 1) / n


def best_of_n_kl_of_answer(n: int, logprob: float) -> float:
    """Returns an estimate of KL(best-of-n || reference) from one served answer, for answers likely enough to be drawn
    twice.

    The mean over prompts of this, with e = exp(logprob), is Beirami's estimator (section 4):
    (1-e)^n (log n + (n-1) log(1-e) - (n-1)/n) + (1 - (1-e)^n) log((1 - (1-e)^n) / e).
    Where no answer is likely, it equals `best_of_n_kl`; where one is certain, it is 0.

    Args:
        logprob: Log-probability of the best candidate under the reference, in nats.

    Raises:
        ValueError: The log-probability is positive.
    """
    if logprob > 0:
        raise ValueError(f"a log-probability is at most 0, got {logprob}")
    if logprob == 0:
        return 0.0
    # log(1 - e), then log((1 - e)^n), both computed so that they are exact for e far too small for 1 - e.
    log_miss = _log1mexp(logprob)
    miss = math.exp(n * log_miss)
    bound = best_of_n_kl(n) + (n - 1) * log_miss
    log_hit = _log1mexp(n * log_miss) if n * log_miss else math.log(n) + logprob
    return miss * bound + math.exp(log_hit) * (log_hit - logprob)


def _log1mexp(x: float) -> float:
    """Returns log(1 - exp(x)) for x < 0."""
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))
