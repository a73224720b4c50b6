"""A length penalty, usually a part of a `weighted` reward, so that a completion does not win by its length alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_options import Options


class LengthOptions(Options):
    """The options of the length penalty."""

    target: int = Field(0, ge=0)
    """The length without a penalty."""
    unit: Literal["words", "chars"] = "words"
    """The unit of length: words or characters."""
    scale: float = Field(1.0, gt=0)
    """The number of units that cost one point."""
    penalise: Literal["over", "both"] = "over"
    """Which lengths to penalise: `over` for those above the target, `both` for those below it as well."""


class LengthReward(Reward):
    """Scores -max(0, length - target) / scale, or -|length - target| / scale."""

    name = "length"

    def __init__(self, options: LengthOptions) -> None:
        self.options = options

    @property
    def version(self) -> str:
        options = self.options
        return f"{options.penalise}-{options.target}-{options.unit}-{options.scale:g}"

    async def start(self) -> None:
        """Does nothing, because there is nothing to load."""

    async def stop(self) -> None:
        """Does nothing, because there is nothing to free."""

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        return [self._score(completion) for completion in completions]

    def _score(self, completion: str) -> float:
        options = self.options
        excess = (len(completion.split()) if options.unit == "words" else len(completion)) - options.target
        if options.penalise == "over":
            excess = max(excess, 0)
        return -abs(excess) / options.scale


def build(options: Mapping[str, Any]) -> LengthReward:
    """Builds the reward from LengthOptions."""
    return LengthReward(LengthOptions.read("length", options))
