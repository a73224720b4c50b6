"""Scores texts with a reward that may fail, be late, or return invalid scores."""

import asyncio
import math
from collections.abc import Sequence

from bonbon.errors import RewardError, RewardInvalid, RewardLate
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward

OFFLINE_DEADLINE = 600.0
"""The seconds that a reward may take where no client waits for the scores."""


async def score_texts(reward: Reward, prompt: Prompt, texts: Sequence[str], *, deadline: float) -> list[float]:
    """Returns one finite reward per text, scoring equal texts once. Raises RewardError for any failure of the reward.

    Where texts continue the prompt's final message, the reward reads the whole message.

    Args:
        deadline: The seconds that the reward may take.
    """
    distinct = list(dict.fromkeys(texts))
    whole = [prompt.continued + text for text in distinct]
    try:
        async with asyncio.timeout(deadline) as timer:
            scores = [float(score) for score in await reward.score(prompt.plain, whole)]
    except RewardError:
        raise
    except Exception as error:
        if timer.expired():
            raise RewardLate(f"reward {reward.name} did not score within {deadline:g} s") from error
        raise RewardError(f"reward {reward.name} failed: {type(error).__name__}: {error}") from error
    if len(scores) != len(distinct):
        raise RewardInvalid(
            f"reward {reward.name} must return one finite score per candidate, but returned {len(scores)} scores for "
            f"{len(distinct)} candidates"
        )
    if not all(math.isfinite(score) for score in scores):
        raise RewardInvalid(
            f"reward {reward.name} must return one finite score per candidate, but returned one that is not finite"
        )
    by_text = dict(zip(distinct, scores, strict=True))
    return [by_text[text] for text in texts]
