"""Tests and intervals that stay valid under continuous monitoring and optional stopping.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", arXiv 2010.09686. Every observation
is one prompt's share of comparisons won, in [0, 1], ties as half. Prompts are independent and in random order.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from bonbon.theory.intervals import Interval

EVERYTHING = Interval(0.0, 1.0)


@dataclass(slots=True)
class _Moments:
    """Running mean and variance, starting as if one fair coin had been observed. The next bet may depend on these
    only."""

    count: int = 0
    mean: float = 0.5
    variance: float = 0.25
    _sum: float = 0.5
    _squares: float = 0.25

    def add(self, x: float, *, around: float | None = None) -> None:
        """Adds an observation. `around` is the mean that `x` is compared with; by default the new one."""
        self.count += 1
        self._sum += x
        self.mean = self._sum / (self.count + 1)
        self._squares += (x - (self.mean if around is None else around)) ** 2
        self.variance = self._squares / (self.count + 1)

    @property
    def observed_mean(self) -> float:
        """The mean of the observations without the coin; .5 before the first."""
        return (self._sum - 0.5) / self.count if self.count else 0.5


class BettingTest:
    """An e-process against "the win rate is at most `null`", for deciding on promotion after every prompt.

    The capital prod (1 + lambda_s (X_s - null)) of a gambler who bets on the challenger has mean at most 1 while the
    null is true, so it ever reaches 1 / delta with probability at most delta (Ville). The bet lambda = clip((mean -
    null) / (variance + (mean - null)^2), 0, 1 / (2 null)) depends on past observations only.

    With delta .05, null .5 and a tenth of ties, half the runs decide within 674 prompts at a win rate of .55, 153 at
    .6, 38 at .7 and 12 at 8/9.

    Raises:
        ValueError: `null` is not inside (0, 1), or an observation is not in [0, 1].
    """

    def __init__(self, null: float = 0.5) -> None:
        if not 0 < null < 1:
            raise ValueError(f"the null hypothesis is a win rate inside (0, 1), got {null}")
        self.null = null
        self.log_capital = 0.0
        self.highest = 0.0
        self._past = _Moments()

    def add(self, x: float) -> None:
        """Adds the next prompt's share of wins."""
        edge = self._past.mean - self.null
        bet = min(max(edge / (self._past.variance + edge**2), 0.0), 1 / (2 * self.null))
        self.log_capital += math.log1p(bet * (_share(x) - self.null))
        self.highest = max(self.highest, self.log_capital)
        self._past.add(x, around=self._past.mean)

    @property
    def count(self) -> int:
        """Number of prompts observed."""
        return self._past.count

    @property
    def p_value(self) -> float:
        """The anytime-valid p-value: one over the highest capital so far."""
        return math.exp(-self.highest)

    def rejects(self, delta: float = 0.05) -> bool:
        """Returns whether the null has been rejected at any time so far; wrongly with probability at most `delta`."""
        return self.highest >= math.log(1 / delta)


@dataclass(slots=True)
class ConfidenceSequence:
    """Intervals for a mean that hold at all times simultaneously with probability 1 - alpha or more (empirical
    Bernstein).

    Centre sum lambda X / sum lambda, radius (log(2 / alpha) + sum 4 (X_s - mean_(s-1))^2 psi(lambda_s)) / sum lambda
    with psi(l) = (-log(1 - l) - l) / 4 and lambda_t = min(1/2, sqrt(2 log(2 / alpha) / (variance_(t-1) t log(1 + t)))):
    theorem 2, the predictable plug-in.

    `interval` is the intersection of all intervals so far, for a mean that does not change. `latest` is the last
    interval alone. It also holds when the mean changes, and then covers the average of the means over time, weighted by
    lambda.

    Raises:
        ValueError: An observation is not in [0, 1].
    """

    alpha: float = 0.05
    interval: Interval = EVERYTHING
    latest: Interval = EVERYTHING
    _past: _Moments = field(default_factory=_Moments)
    _bets: float = 0.0
    _weighted: float = 0.0
    _spread: float = 0.0

    def add(self, x: float) -> Interval:
        """Adds an observation and returns the new interval."""
        past, t, level = self._past, self._past.count + 1, math.log(2 / self.alpha)
        bet = min(math.sqrt(2 * level / (past.variance * t * math.log1p(t))), 0.5)
        self._bets += bet
        self._weighted += bet * _share(x)
        self._spread += (x - past.mean) ** 2 * (-math.log1p(-bet) - bet)
        past.add(x)
        centre, radius = self._weighted / self._bets, (level + self._spread) / self._bets
        self.latest = Interval(max(0.0, centre - radius), min(1.0, centre + radius))
        low, high = max(self.interval.low, self.latest.low), min(self.interval.high, self.latest.high)
        # An empty intersection has probability at most alpha, so the mean has probably changed.
        self.interval = Interval(low, high) if low <= high else Interval((low + high) / 2, (low + high) / 2)
        return self.interval

    @property
    def count(self) -> int:
        """Number of observations."""
        return self._past.count

    @property
    def mean(self) -> float:
        """The plain mean of the observations; .5 before the first."""
        return self._past.observed_mean

    def state(self) -> dict[str, Any]:
        """Returns the complete state in JSON types."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Restores what `state` returned."""
        intervals = {name: Interval(*state[name]) for name in ("interval", "latest")}
        return cls(**{**state, **intervals, "_past": _Moments(**state["_past"])})


def _share(x: float) -> float:
    if not 0 <= x <= 1:
        raise ValueError(f"an observation is a share of wins in [0, 1], got {x}")
    return x
