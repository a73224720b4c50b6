"""What best-of-n reaches, and what it costs in divergence."""

import math


def best_of_n_win_rate(n: float) -> float:
    """Win rate of best-of-n against the reference, n / (n + 1) (BoNBoN, section 3). `n` may be any real >= 1."""
    return n / (n + 1)


def best_of_n_kl(n: float) -> float:
    """KL(best-of-n || reference) without ties, log n - (n - 1) / n; with ties an upper bound (Beirami, theorem 1)."""
    return math.log(n) - (n - 1) / n


def best_of_n_kl_of_answer(n: int, logprob: float) -> float:
    """Estimate of KL(best-of-n || reference) from one served answer, where answers are likely enough to be drawn twice.

    The mean over prompts of this, with e = exp(logprob), is Beirami's estimator (section 4):
    (1-e)^n (log n + (n-1) log(1-e) - (n-1)/n) + (1 - (1-e)^n) log((1 - (1-e)^n) / e).
    Where no answer is likely it is `best_of_n_kl`; where one is certain, 0.

    Args:
        logprob: of the best candidate under the reference, nats.

    Raises:
        ValueError: a positive log-probability.
    """
    if logprob > 0:
        raise ValueError(f"a log-probability is at most 0, got {logprob}")
    if logprob == 0:
        return 0.0
    # log(1 - e), and then log((1 - e)^n): both for e that may be far too small for 1 - e.
    log_miss = _log1mexp(logprob)
    miss = math.exp(n * log_miss)
    bound = best_of_n_kl(n) + (n - 1) * log_miss
    log_hit = _log1mexp(n * log_miss) if n * log_miss else math.log(n) + logprob
    return miss * bound + math.exp(log_hit) * (log_hit - logprob)


def _log1mexp(x: float) -> float:
    """log(1 - exp(x)) for x < 0."""
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))
