"""Monitors a mean that may change, with confidence sequences that restart so that old data cannot hide a drift."""

from collections.abc import Mapping
from typing import Any, Self

from bonbon.theory.anytime import ConfidenceSequence
from bonbon.theory.intervals import Interval

WINDOW = 500
ALPHA = 0.05


class RollingSequence:
    """Confidence sequences, one started every `window` observations and kept for twice as many.

    Sequence k has the level alpha / (k (k + 1)), and these add up to alpha. With probability at least 1 - alpha, every
    interval of every sequence, after every observation and for ever, contains the average of the mean while that
    sequence lasted (see `ConfidenceSequence.latest`). The probability that `is_below` is ever true while the mean has
    never been below is therefore at most alpha, and a fall after any number of good observations is detected by a
    sequence that contains at most 2 `window` of those.

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
        """Adds an observation and returns the new `interval`."""
        if not self._sequences or self._sequences[-1].count == self.window:
            self._begun += 1
            newest = ConfidenceSequence(self.alpha / (self._begun * (self._begun + 1)))
            self._sequences = [*self._sequences[-1:], newest]
        for sequence in self._sequences:
            sequence.add(x)
        return self.interval

    @property
    def interval(self) -> Interval:
        """The older sequence's interval, from the last `window` to 2 `window` observations (fewer at the beginning)."""
        return self._sequences[0].latest if self._sequences else Interval(0.0, 1.0)

    @property
    def mean(self) -> float:
        """The plain mean of those observations; .5 before the first."""
        return self._sequences[0].mean if self._sequences else 0.5

    @property
    def count(self) -> int:
        """The number of those observations."""
        return self._sequences[0].count if self._sequences else 0

    def is_below(self, minimum: float) -> bool:
        """Returns whether a sequence has its upper bound below `minimum` now."""
        return any(sequence.latest.high < minimum for sequence in self._sequences)

    def state(self) -> dict[str, Any]:
        """Returns the complete state in JSON types."""
        sequences = [sequence.state() for sequence in self._sequences]
        return {"alpha": self.alpha, "window": self.window, "begun": self._begun, "sequences": sequences}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Restores what `state` returned."""
        rolling = cls(state["alpha"], state["window"])
        rolling._begun = state["begun"]
        rolling._sequences = [ConfidenceSequence.from_state(sequence) for sequence in state["sequences"]]
        return rolling
