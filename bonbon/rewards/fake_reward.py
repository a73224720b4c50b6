"""Deterministic rewards that need no model, for tests and for trying out the service."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward


def digest_score(prompt: Prompt, completion: str) -> float:
    """Returns a number in [0, 1) that depends only on the completion's text. Only equal texts tie."""
    return int.from_bytes(sha256(completion.encode()).digest()[:7], "big") / 2**56


class FakeReward(Reward):
    """Scores with a plain function.

    Args:
        function: Returns the score of one completion.
        delay: The seconds that each call takes.
    """

    name = "fake"
    version = "1"

    def __init__(self, function: Callable[[Prompt, str], float] = digest_score, *, delay: float = 0.0) -> None:
        self.function, self.delay = function, delay
        self.calls: list[tuple[str, ...]] = []
        self.failure: str | None = None

    async def start(self) -> None:
        self.calls.clear()

    async def stop(self) -> None:
        self.calls.clear()

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        self.calls.append(tuple(completions))
        await asyncio.sleep(self.delay)
        if self.failure:
            raise RewardError(self.failure)
        return [self.function(prompt, completion) for completion in completions]


def build(options: Mapping[str, Any]) -> FakeReward:
    """Builds the reward from the options `delay` (seconds) and `salt` (a text; each salt gives another ranking)."""
    salt = str(options.get("salt", ""))
    return FakeReward(lambda prompt, text: digest_score(prompt, salt + text), delay=float(options.get("delay", 0.0)))
