"""The `bonbon` object of a response: what best-of-n did for it."""

from collections.abc import Sequence
from typing import Any

from bonbon.pairs.records import Candidate, Group


def extension(groups: Sequence[Group], *, stored: bool, candidates: bool) -> dict[str, Any]:
    """`chosen`, `rewards` and `win_probabilities` have one entry per choice, over all prompts, in order.

    `groups` is there when there were several prompts, with one entry for each.
    """
    described = [_group(group, stored=stored, candidates=candidates) for group in groups]
    degraded = next((group.degraded for group in groups if group.degraded is not None), None)
    whole = {
        "version": groups[0].version,
        "n": groups[0].n,
        "chosen": [index for group in described for index in group["chosen"]],
        "rewards": [reward for group in described for reward in group["rewards"]],
        "win_probabilities": [chance for group in described for chance in group["win_probabilities"]],
        "tokens_drawn": sum(group["tokens_drawn"] for group in described),
        "group_id": described[0]["group_id"] if len(described) == 1 else None,
        "degraded": degraded is not None,
        "degraded_reason": degraded,
    }
    if len(described) > 1:
        return whole | {"groups": described}
    return whole | ({"candidates": described[0]["candidates"]} if candidates else {})


def _group(group: Group, *, stored: bool, candidates: bool) -> dict[str, Any]:
    served = group.served
    entry = {
        "chosen": [candidate.index for candidate in served],
        "rewards": [candidate.reward for candidate in served],
        "win_probabilities": [candidate.win_probability for candidate in served],
        "tokens_drawn": sum(len(candidate.token_ids) for candidate in group.candidates),
        "group_id": group.id or None if stored else None,
        "degraded": group.degraded is not None,
        "degraded_reason": group.degraded,
    }
    return entry | ({"candidates": [_candidate(c) for c in group.candidates]} if candidates else {})


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "index": candidate.index,
        "text": candidate.text,
        "reward": candidate.reward,
        "rank": candidate.rank,
        "win_probability": candidate.win_probability,
        "finish_reason": candidate.finish_reason,
        "tokens": len(candidate.token_ids),
    }
