"""The reward: whatever says how good completions of a prompt are."""

from collections.abc import Sequence
from typing import Protocol

from bonbon.prompt import Prompt


class Reward(Protocol):
    """Scores completions; higher is better, any real scale. Safe to call from many tasks of one event loop."""

    @property
    def name(self) -> str:
        """What kind of reward this is, as people know it: it labels metrics and logged groups."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same input may score differently: a digest, a revision, a model name."""
        ...

    async def start(self) -> None:
        """Load what is needed before the first score. Raises UserError when it cannot be had."""
        ...

    async def stop(self) -> None:
        """Free it."""
        ...

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        """One score per completion, in order.

        The caller passes distinct completions and sets the deadline by cancelling.

        Raises:
            RewardError: it could not score.
        """
        ...
