"""The interface of rewards, which score completions of a prompt."""

from collections.abc import Sequence
from typing import Protocol

from bonbon.prompt import Prompt


class Reward(Protocol):
    """Scores completions with any real number; higher is better. Safe to call from many tasks of one event loop."""

    @property
    def name(self) -> str:
        """Returns the name of the reward for people, which labels metrics and logged groups."""
        ...

    @property
    def version(self) -> str:
        """Returns a digest, revision or model name that changes whenever the same input may score differently."""
        ...

    async def start(self) -> None:
        """Loads what the reward needs before the first score. Raises UserError when it cannot be loaded."""
        ...

    async def stop(self) -> None:
        """Frees what `start` loaded."""
        ...

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        """Returns one score per completion, in order.

        The caller passes distinct completions and sets the deadline by cancelling.

        Raises:
            RewardError: The reward could not score.
        """
        ...
