"""What an evaluation asks of an estimator of KL divergence."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Completion(NamedTuple):
    """A completion that was drawn, as token ids, the end-of-sequence token included."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class Divergence(NamedTuple):
    """Two estimates of KL(policy || other) from one completion of the policy, in nats."""

    rao_blackwell: float
    k1: float


class DivergenceEstimator(Protocol):
    """Estimates how far a policy is from others, from the policy's own completions. Blocking."""

    name: str
    """The estimator that is reported first."""

    def __call__(
        self, policy: str, others: Sequence[str], completions: Sequence[Completion], advance: Callable[[int], None]
    ) -> dict[str, list[Divergence]]:
        """For each name in `others`, one divergence per completion; `advance` is told how many more are done."""
        ...
