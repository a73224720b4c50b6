"""The distribution that the fake engine samples from, as `Sampling` changes it."""

import math
from collections.abc import Collection, Sequence

from bonbon.engines.engine import Sampling


def weights(
    logits: Sequence[float], end: int, sampling: Sampling, prompt: Collection[int], sampled: Sequence[int]
) -> list[float]:
    """Returns the probability of each token to be sampled next, up to a common factor.

    Args:
        logits: The logit of each token.
        end: The end token.
        sampling: The sampling parameters; see `Sampling`.
        prompt: The prompt's tokens.
        sampled: The candidate's tokens so far.
    """
    changed = list(logits)
    for token, bias in sampling.logit_bias:
        changed[token] += bias
    if len(sampled) < sampling.min_tokens and not sampling.ignore_eos:
        changed[end] = -math.inf
    for token, logit in enumerate(changed):
        count = sampled.count(token)
        if count or token in prompt:
            factor = sampling.repetition_penalty
            changed[token] = logit / factor if logit > 0 else logit * factor
        changed[token] -= count * sampling.frequency_penalty + (count > 0) * sampling.presence_penalty
    if sampling.temperature == 0:
        best = changed.index(max(changed))
        return [float(token == best) for token in range(len(changed))]
    top = max(changed)
    return _limited([math.exp((logit - top) / sampling.temperature) for logit in changed], sampling)


def _limited(chances: list[float], sampling: Sampling) -> list[float]:
    """Sets to 0 the weights of the tokens that min_p, top_k and top_p exclude. The most likely token has weight 1."""
    order = sorted(range(len(chances)), key=lambda token: -chances[token])
    kept = [token for token in order if chances[token] >= sampling.min_p]
    kept = kept[: sampling.top_k] if sampling.top_k > 0 else kept
    total, before, support = sum(chances[token] for token in kept), 0.0, set()
    for token in kept:
        if before < sampling.top_p * total:
            support.add(token)
        before += chances[token]
    return [chance if token in support else 0.0 for token, chance in enumerate(chances)]
