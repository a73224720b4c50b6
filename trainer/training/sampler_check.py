"""Whether the groups were drawn from the policy that they say."""

import math

import numpy as np
from torch import Tensor

from bonbon.errors import UserError
from trainer.data.groups import Groups, Rows

MOST_GROUPS = 256
SURE = 3.0
"""Standard errors by which a mean must be over the limit."""


def checked_rows(groups: Groups, *, by_base: bool) -> Rows:
    """At most `MOST_GROUPS` of the groups that the base drew, or of the others, spread over all of them."""
    rows = np.flatnonzero(groups.by_base == by_base)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_GROUPS)).astype(np.int64)]


def check_sampler(groups: Groups, rows: Rows, policy: Tensor, *, limit: float, noise: float, name: str) -> float:
    """The mean over candidates of logged less computed log-probability, in nats: an estimate of KL(sampler || policy).

    The differences of single candidates say little, because the noise of 16-bit arithmetic is as large after some
    hundred tokens. But it has either sign, while a wrong policy gives the sampler's own draws less on average.

    Args:
        rows: of groups that are said to be drawn from the policy.
        policy: log-probabilities of all candidates of `groups` under the policy.
        limit: nats.
        noise: nats a token that arithmetic alone may add to the mean.
        name: the policy's.

    Raises:
        UserError: it is more than `limit`, and surely so.
    """
    if not len(rows):
        return 0.0
    places = np.concatenate([groups.candidates_of(int(row)) for row in rows])
    gaps = groups.logprobs[places] - policy.double().numpy()[places]
    mean = float(gaps.mean())
    by_group = np.add.reduceat(gaps, np.cumsum(groups.n[rows]) - groups.n[rows]) / groups.n[rows]
    error = float(by_group.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else 0.0
    allowed = noise * float(groups.tokens[places].mean())
    if mean - SURE * error > limit + allowed:
        raise UserError(
            f"the candidates of {len(rows)} groups were logged with log-probabilities that are {mean:.2f} nats an "
            f"answer higher than {name} gives them, more than train.max_sampler_gap = {limit:g} and the noise of "
            f"16-bit arithmetic, {allowed:.2f}: {name} did not draw them, or the engine computes otherwise than the "
            "trainer; train on the version that answered, or raise train.max_sampler_gap if you know why",
            param="train.max_sampler_gap",
        )
    return mean
