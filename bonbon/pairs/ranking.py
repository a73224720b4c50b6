"""Ranks the candidates of a group and decides whether the group may be trained on."""

import random
from dataclasses import replace

from bonbon.pairs.group_records import Candidate, Group, Unclean
from bonbon.theory import mid_ranks


def rank(candidates: tuple[Candidate, ...], rewards: list[float], rng: random.Random) -> tuple[Candidate, ...]:
    """Returns candidates with reward, rank and win probability. Ties are broken uniformly at random."""
    n = len(candidates)
    order = sorted(range(n), key=lambda i: (rewards[i], rng.random()))
    ranks = {i: position for position, i in enumerate(order, start=1)}
    return tuple(
        replace(candidate, reward=rewards[i], rank=ranks[i], win_probability=mid_rank / (n + 1))
        for i, (candidate, mid_rank) in enumerate(zip(candidates, mid_ranks(rewards), strict=True))
    )


def why_unclean(group: Group, *, own_reward: bool = False, repeated: bool = False) -> Unclean | None:
    """Returns why `group` must not be trained on, or None when it is clean.

    Args:
        own_reward: Whether its tenant's own reward ranked it.
        repeated: Whether an earlier attempt of its request may have been logged as well. This comes first, so that
            scoring a degraded or tied group again does not make it clean beside that attempt's group.
    """
    if repeated:
        return Unclean.REPEATED
    if group.n == 1:
        return Unclean.SINGLE
    if group.degraded is not None:
        return Unclean.DEGRADED
    if any(candidate.finish_reason == "abort" for candidate in group.candidates):
        return Unclean.ABORTED
    if not group.sampling.unmodified or group.prompt.constrains:
        return Unclean.SAMPLING
    if own_reward:
        return Unclean.REWARD
    if group.best.reward == group.worst.reward:
        return Unclean.TIED
    return None
