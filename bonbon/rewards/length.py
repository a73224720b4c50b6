"""A length penalty: mostly a part of a `weighted` reward, to keep another from paying for length alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_options import Options


class LengthOptions(Options):
    """How long is too long."""

    target: int = Field(0, ge=0)
    """Length that costs nothing."""
    unit: Literal["words", "chars"] = "words"
    scale: float = Field(1.0, gt=0)
    """Units that cost one point."""
    penalise: Literal["over", "both"] = "over"
    """over: what exceeds the target; both: what falls short of it as well."""


class LengthReward(Reward):
    """-max(0, length - target) / scale, or -|length - target| / scale."""

    name = "length"

    def __init__(self, options: LengthOptions) -> None:
        self.options = options

    @property
    def version(self) -> str:
        options = self.options
        return f"{options.penalise}-{options.target}-{options.unit}-{options.scale:g}"

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to free."""

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        return [self._score(completion) for completion in completions]

    def _score(self, completion: str) -> float:
        options = self.options
        excess = (len(completion.split()) if options.unit == "words" else len(completion)) - options.target
        if options.penalise == "over":
            excess = max(excess, 0)
        return -abs(excess) / options.scale


def build(options: Mapping[str, Any]) -> LengthReward:
    """Options: LengthOptions."""
    return LengthReward(LengthOptions.read("length", options))
