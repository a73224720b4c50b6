"""Enforces the minimum live win rate: below it the champion samples more candidates, or best-of-n answers instead."""

from typing import Protocol

import structlog

from bonbon.errors import Conflict
from bonbon.pairs.group_records import best_of
from bonbon.pairs.live.win_rates import LiveWinRate, read_win_rates
from bonbon.registry.registry import Registry
from service.routing.router import Router

log = structlog.get_logger(__name__)

ACTOR = "win-rate fallback"
EVEN = 0.5
"""Minimum win rate if a setting fixes the number of candidates: answers must not be worse than the base's."""


class FallbackMetrics(Protocol):
    """Counts the actions of `Fallback`."""

    def raised_k(self) -> None:
        """Counts that the champion samples more candidates than before."""

    def fell_back(self) -> None:
        """Counts that the service fell back to best-of-n of the base."""


class Fallback:
    """Compares the live win rate of the champion against best-of-n of the base with a minimum.

    When the upper bound of the win rate is below `win_rate_floor`, the champion samples twice as many candidates. When
    that would be n or more, the service falls back to best-of-n of the last good version: `previous`, if the lower
    bound of its own live win rate by the same reward reaches the minimum, otherwise the base, whose best-of-n does not
    depend on training. Both actions change the registry, so every gateway follows.

    If a setting fixes the number of candidates, the user has accepted a loss of quality. Then the opponent is one
    candidate of the base, the minimum is `EVEN`, and the number of candidates is not raised. With a `win_rate_floor` of
    0 nothing is ever done.
    """

    def __init__(self, registry: Registry, router: Router, metrics: FallbackMetrics, win_rate_floor: float) -> None:
        self.registry, self.router, self.metrics = registry, router, metrics
        self._win_rate_floor = win_rate_floor

    @property
    def opponent(self) -> str:
        """The opponent with which the champion's answers are compared."""
        return self.router.routes.base if self.router.k_is_fixed else best_of(self.router.n)

    @property
    def value(self) -> float:
        """The minimum win rate of the champion against `opponent`."""
        return EVEN if self.router.k_is_fixed and self._win_rate_floor else self._win_rate_floor

    async def check(self, live: LiveWinRate) -> None:
        """Acts if `live` is below the minimum and no other gateway has acted yet.

        Raises:
            StoreError: The registry is not available.
        """
        routes, k = self.router.routes, self.router.k
        if (live.version, live.opponent, live.k) != (routes.champion, self.opponent, k):
            return
        if not routes.distilled or not live.is_below(self.value):
            return
        reason = (
            f"best-of-{k} of {live.version} won {live.win_rate:.3f} of the last {live.recent} comparisons with "
            f"{live.opponent} by the reward {live.reward_name} (95 % confidence interval {live.band.low:.3f} to "
            f"{live.band.high:.3f}), which is below the minimum win rate of {self.value:.3f}"
        )
        try:
            if 2 * k < self.router.n and not self.router.k_is_fixed:
                await self._raise_k(live.version, 2 * k, reason)
            else:
                await self._fall_back(live, reason)
        except Conflict as conflict:
            log.info("another process changed the champion first", reason=str(conflict))

    async def _raise_k(self, version: str, k: int, reason: str) -> None:
        await self.registry.raise_k(version, k, actor=ACTOR, reason=reason)
        self.metrics.raised_k()
        log.warning("champion is below the minimum win rate and now samples more candidates", k=k, reason=reason)

    async def _fall_back(self, live: LiveWinRate, reason: str) -> None:
        to = await self._last_good(live)
        await self.registry.fall_back(live.version, to, actor=ACTOR, reason=reason)
        self.metrics.fell_back()
        log.error("champion is below the minimum win rate; falling back to best-of-n", version=to, reason=reason)

    async def _last_good(self, live: LiveWinRate) -> str:
        routes = self.router.routes
        if routes.previous is not None and routes.previous != routes.base:
            for known in await read_win_rates(self.registry.database, routes.previous):
                same = (known.opponent, known.reward_name, known.reward_version)
                if same == (live.opponent, live.reward_name, live.reward_version) and known.band.low >= self.value:
                    return known.version
        return routes.base
