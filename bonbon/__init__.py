"""Serves best-of-n answers from a language model, and distils them into a model that needs one sample per answer."""

from bonbon.best_of_n import Answer, BestOfN
from bonbon.engines.engine import Delta, DrawRequest, Engine, Sampling, Started
from bonbon.pairs.group_records import Candidate, Group
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BestOfN",
    "Candidate",
    "Delta",
    "DrawRequest",
    "Engine",
    "Group",
    "Prompt",
    "Reward",
    "Sampling",
    "Started",
    "__version__",
]
