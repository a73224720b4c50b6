"""What an evaluation asks of an estimator of KL divergence."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Completion(NamedTuple):
    """A completion that was drawn at a temperature, as token ids, the end-of-sequence token included."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    temperature: float


class Divergence(NamedTuple):
    """Two estimates of KL(policy || base) from one completion of the policy, in nats."""

    rao_blackwell: float
    k1: float


class DivergenceEstimator(Protocol):
    """Estimates how far a policy is from its base, from the policy's own completions. Blocking."""

    name: str
    """The estimator that is reported first."""

    def __call__(self, completions: Sequence[Completion], advance: Callable[[int], None]) -> list[Divergence]:
        """One divergence per completion; `advance` is told how many more are done."""
        ...
