"""A mean that may move, watched for ever: confidence sequences begun anew, so that an old one cannot hide a drift."""

from collections.abc import Mapping
from typing import Any, Self

from bonbon.theory.anytime import ConfidenceSequence
from bonbon.theory.intervals import Interval

WINDOW = 500
ALPHA = 0.05


class RollingSequence:
    """Confidence sequences, one begun every `window` observations and kept for twice as many.

    Sequence k has the level alpha / (k (k + 1)), and these add up to alpha: with probability at least 1 - alpha every
    interval of every sequence, looked at after every observation and for ever, holds the average of what the mean was
    while that sequence lasted (see `ConfidenceSequence.latest`). So the probability that `is_below` is ever true while
    the mean has never been below is at most alpha, and a fall that comes after any number of good observations is seen
    by a sequence that has at most 2 `window` of those.

    Raises:
        ValueError: `window` is not positive, or an observation is not in [0, 1].
    """

    def __init__(self, alpha: float = ALPHA, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError(f"a window has at least one observation, got {window}")
        self.alpha, self.window = alpha, window
        self._begun = 0
        self._sequences: list[ConfidenceSequence] = []

    def add(self, x: float) -> Interval:
        """The next observation; `interval` with it."""
        if not self._sequences or self._sequences[-1].count == self.window:
            self._begun += 1
            newest = ConfidenceSequence(self.alpha / (self._begun * (self._begun + 1)))
            self._sequences = [*self._sequences[-1:], newest]
        for sequence in self._sequences:
            sequence.add(x)
        return self.interval

    @property
    def interval(self) -> Interval:
        """Of the older sequence: it rests on the last `window` to 2 `window` observations (fewer at the beginning)."""
        return self._sequences[0].latest if self._sequences else Interval(0.0, 1.0)

    @property
    def mean(self) -> float:
        """The plain mean of those observations; .5 before the first."""
        return self._sequences[0].mean if self._sequences else 0.5

    @property
    def count(self) -> int:
        """How many those are."""
        return self._sequences[0].count if self._sequences else 0

    def is_below(self, floor: float) -> bool:
        """Whether a sequence has its upper bound under `floor` now."""
        return any(sequence.latest.high < floor for sequence in self._sequences)

    def state(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        sequences = [sequence.state() for sequence in self._sequences]
        return {"alpha": self.alpha, "window": self.window, "begun": self._begun, "sequences": sequences}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `state` gave."""
        rolling = cls(state["alpha"], state["window"])
        rolling._begun = state["begun"]
        rolling._sequences = [ConfidenceSequence.from_state(sequence) for sequence in state["sequences"]]
        return rolling
