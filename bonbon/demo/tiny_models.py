"""The demo's models, which ship with the package; `bonbon.demo.make_models` made them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TinyModels:
    """Directories in Hugging Face format: a Llama policy, the reward it is trained with, and one to check it by."""

    policy: Path
    reward: Path
    held_out_reward: Path

    @classmethod
    def within(cls, directory: Path) -> "TinyModels":
        return cls(directory / "tiny-support", directory / "tiny-reward", directory / "tiny-reward-held-out")


def tiny_models() -> TinyModels:
    """The shipped models."""
    return TinyModels.within(Path(__file__).parent / "tiny")
