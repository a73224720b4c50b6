"""The interface between an evaluation and an estimator of KL divergence."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Completion(NamedTuple):
    """A completion sampled at `temperature`, as token ids that include the end-of-sequence token."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    temperature: float


class Divergence(NamedTuple):
    """Two estimates of KL(policy || base) from one completion of the policy, in nats."""

    rao_blackwell: float
    k1: float


class DivergenceEstimator(Protocol):
    """Estimates the KL of a policy from its base, from the policy's own completions. Calls block."""

    name: str
    """The name of the estimator that is reported first."""

    def __call__(self, completions: Sequence[Completion], advance: Callable[[int], None]) -> list[Divergence]:
        """Returns one divergence per completion. Calls `advance` with the number of further completions that are
        done."""
        ...
