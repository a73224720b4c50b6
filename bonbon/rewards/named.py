"""A reward under a name of its own."""

from collections.abc import Sequence

from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward


class NamedReward(Reward):
    """Gives `reward` the name `name`, so that groups, metrics and logs distinguish two rewards of one kind."""

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
