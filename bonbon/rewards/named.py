"""A reward under another name than its kind's."""

from collections.abc import Sequence

from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward


class NamedReward(Reward):
    """`reward` as `name`: two of one kind are told apart in groups, metrics and logs."""

    def __init__(self, name: str, reward: Reward) -> None:
        self._name, self.reward = name, reward

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self.reward.version

    async def start(self) -> None:
        await self.reward.start()

    async def stop(self) -> None:
        await self.reward.stop()

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        return await self.reward.score(prompt, completions)
