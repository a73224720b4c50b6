"""The demo's models, which the package contains; see `bonbon.demo.make_models`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TinyModels:
    """Directories in Hugging Face format: a Llama policy, the reward for training it, and a reward for checking it."""

    policy: Path
    reward: Path
    held_out_reward: Path

    @classmethod
    def within(cls, directory: Path) -> "TinyModels":
        return cls(directory / "tiny-support", directory / "tiny-reward", directory / "tiny-reward-held-out")


def tiny_models() -> TinyModels:
    """Returns the models in the package."""
    return TinyModels.within(Path(__file__).parent / "tiny")
