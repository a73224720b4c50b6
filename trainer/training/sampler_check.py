"""Checks whether the groups were drawn from the policy that they name."""

import math

import numpy as np
from torch import Tensor

from bonbon.errors import UserError
from trainer.data.groups import Groups, Rows

MAX_GROUPS = 256
MIN_STANDARD_ERRORS = 3.0
"""Number of standard errors by which a mean must exceed the limit."""
LOGGED = "train on the version that answered, or raise train.max_sampler_gap if you know why"
"""The remedy where logged groups were drawn from another policy."""


def checked_rows(groups: Groups, *, by_base: bool) -> Rows:
    """Returns at most `MAX_GROUPS` of the groups drawn from the base (or of the others), spread over all of them."""
    rows = np.flatnonzero(groups.by_base == by_base)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_GROUPS)).astype(np.int64)]


def check_sampler(
    groups: Groups, rows: Rows, policy: Tensor, *, limit: float, noise: float, name: str, remedy: str = LOGGED
) -> float:
    """Returns the mean of the logged minus the computed log-probability of candidates, an estimate of KL(sampler ||
    policy).

    The result is in nats. Single differences are inconclusive, because after some hundred tokens the noise of 16-bit
    arithmetic is as large. That noise has either sign, while a wrong policy gives the sampler's own draws less on
    average.

    Args:
        rows: Groups that are said to be drawn from the policy.
        policy: Log-probabilities of all candidates of `groups` under the policy.
        limit: The highest mean allowed, in nats.
        noise: The mean that arithmetic alone may add, in nats per token.
        name: The policy's name.
        remedy: What the message tells the user to do.

    Raises:
        UserError: The mean exceeds `limit` by more than chance explains.
    """
    if not len(rows):
        return 0.0
    places = np.concatenate([groups.candidates_of(int(row)) for row in rows])
    gaps = groups.logprobs[places] - policy.double().numpy()[places]
    mean = float(gaps.mean())
    by_group = np.add.reduceat(gaps, np.cumsum(groups.n[rows]) - groups.n[rows]) / groups.n[rows]
    error = float(by_group.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else 0.0
    allowed = noise * float(groups.tokens[places].mean())
    if mean - MIN_STANDARD_ERRORS * error > limit + allowed:
        raise UserError(
            f"the candidates of {len(rows)} groups were logged with log-probabilities that are {mean:.2f} nats an "
            f"answer higher than {name} gives them, more than train.max_sampler_gap = {limit:g} and the noise of "
            f"16-bit arithmetic, {allowed:.2f}: {name} did not draw them, or the engine computes otherwise than the "
            f"trainer; {remedy}",
            param="train.max_sampler_gap",
        )
    return mean
