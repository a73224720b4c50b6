"""Writes the `bonbon` object of a response, which describes the result of best-of-n."""

from collections.abc import Sequence
from typing import Any

from bonbon.best_of_n import Answer
from bonbon.pairs.group_records import Candidate
from service.rendering.degraded import degraded_reason


def extension(answers: Sequence[Answer], *, stored: bool, candidates: bool) -> dict[str, Any]:
    """Returns the `bonbon` object.

    `chosen`, `rewards` and `win_probabilities` have one entry per choice, over all prompts, in order. `groups` is
    present if there were several prompts, with one entry for each.
    """
    described = [_group(answer, stored=stored, candidates=candidates) for answer in answers]
    degraded = next((group["degraded_reason"] for group in described if group["degraded"]), None)
    first = answers[0].group
    whole = {
        "version": first.version,
        "n": first.n,
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


def _group(answer: Answer, *, stored: bool, candidates: bool) -> dict[str, Any]:
    group, served = answer.group, answer.group.served
    entry = {
        "chosen": [candidate.index for candidate in served],
        "rewards": [candidate.reward for candidate in served],
        "win_probabilities": [candidate.win_probability for candidate in served],
        "tokens_drawn": group.drawn_tokens,
        "group_id": group.id or None if stored else None,
        "degraded": group.degraded is not None,
        "degraded_reason": degraded_reason(group, answer.failure),
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
