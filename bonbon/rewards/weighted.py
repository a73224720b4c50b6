"""A weighted sum of several rewards."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import fsum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_options import Options
from bonbon.settings import RewardSpec


class Part(BaseModel):
    """One reward and its weight; a negative weight makes it a penalty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(allow_inf_nan=False)
    reward: RewardSpec


class WeightedOptions(Options):
    """The options of a weighted reward."""

    parts: list[Part] = Field(min_length=1)
    """The parts, each `{weight, reward}`; the reward is a string, or a kind with its options, as anywhere else."""


class WeightedReward(Reward):
    """Scores with all parts concurrently.

    The sum fails when any part fails, because a partial sum would be another reward.

    Args:
        parts: The weight and the reward of each part.
    """

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        self.parts = tuple(parts)

    @property
    def name(self) -> str:
        return f"weighted({', '.join(reward.name for _, reward in self.parts)})"

    @property
    def version(self) -> str:
        """Returns a digest of the weights and of the parts' names and versions."""
        parts = [(weight, reward.name, reward.version) for weight, reward in self.parts]
        return sha256(repr(parts).encode()).hexdigest()[:16]

    async def start(self) -> None:
        try:
            await gather_or_cancel(reward.start() for _, reward in self.parts)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await gather_or_cancel(reward.stop() for _, reward in self.parts)

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        columns = await gather_or_cancel(reward.score(prompt, completions) for _, reward in self.parts)
        weights = [weight for weight, _ in self.parts]
        return [
            fsum(weight * score for weight, score in zip(weights, scores, strict=True))
            for scores in zip(*columns, strict=True)
        ]


def build(options: Mapping[str, Any]) -> WeightedReward:
    """Builds the reward from WeightedOptions."""
    parts = WeightedOptions.read("weighted", options).parts
    return WeightedReward([(part.weight, build_reward(part.reward)) for part in parts])
