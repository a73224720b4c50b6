"""Builds scored groups for the store's tests."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bonbon.engines.engine import Sampling
from bonbon.ids import time_ordered_id
from bonbon.pairs.group_records import Candidate, Group
from bonbon.pairs.ranking import rank, why_unclean
from bonbon.prompt import Prompt


def scored_group(number: int = 0, *, n: int = 4, rewards: tuple[float, ...] | None = None, **changes: Any) -> Group:
    """Returns a ranked group whose candidates differ in every field; `changes` replace the group's fields."""
    rng = random.Random(number)
    rewards = rewards or tuple(rng.gauss(0, 1) for _ in range(n))
    candidates = tuple(
        Candidate(
            index=index,
            text=f"answer {number}.{index}",
            token_ids=tuple(rng.randrange(2**31) for _ in range(index + 2)),
            logprob=-rng.random() * 30,
            finish_reason="stop",
        )
        for index in range(len(rewards))
    )
    ranked = rank(candidates, list(rewards), rng)
    served = max(ranked, key=lambda candidate: candidate.rank or 0).index
    fields: dict[str, Any] = {
        "id": time_ordered_id(),
        "time": datetime.now(UTC),
        "prompt": Prompt.user(f"question {number}"),
        "prompt_token_ids": (1, 2, number),
        "version": "tiny",
        "sampling": Sampling(max_tokens=32, temperature=1.0, seed=number),
        "reward_name": "helpful",
        "reward_version": "1",
        "candidates": tuple(replace(candidate, served=candidate.index == served) for candidate in ranked),
        "user": f"user {number % 3}",
        "request_id": f"req-{number}",
        "metadata": {"number": str(number)},
    }
    group = Group(**(fields | changes))
    return group if "unclean" in changes else replace(group, unclean=why_unclean(group))
