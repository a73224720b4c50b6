"""The floor under the live win rate: a champion that falls under it draws more, and in the end best-of-n answers."""

from typing import Protocol

import structlog

from bonbon.errors import Conflict
from bonbon.pairs.group_records import best_of
from bonbon.pairs.live.win_rates import LiveWinRate, read_win_rates
from bonbon.registry.registry import Registry
from service.routing.router import Router

log = structlog.get_logger(__name__)

ACTOR = "win-rate floor"
EVEN = 0.5
"""The floor where a setting fixes the number of draws: with that many, answers must not be worse than the base's."""


class FallbackMetrics(Protocol):
    """What is counted of a champion that draws more, or is replaced."""

    def raised_k(self) -> None:
        """Count that the champion draws more candidates than before."""

    def fell_back(self) -> None:
        """Count that best-of-n of the base answers again."""


class Fallback:
    """Watches the live win rate of what is served against best-of-n of the base.

    When its upper bound is under `floor`, the champion answers with the best of twice as many draws. When that would be
    n or more, the champion is replaced by best-of-n of the last version that is known to be good: `previous`, if its
    own live win rate by the same reward has its lower bound at or above the floor, else the base, whose best-of-n owes
    nothing to training. Either is a change in the registry, so every gateway follows.

    Where a setting fixes the number of draws, the user has chosen to lose quality for it. Then the opponent is one draw
    of the base, the floor is `EVEN`, and nothing is raised. A `floor` of 0 never acts.
    """

    def __init__(self, registry: Registry, serving: Router, metrics: FallbackMetrics, floor: float) -> None:
        self.registry, self.serving, self.metrics, self._floor = registry, serving, metrics, floor

    @property
    def opponent(self) -> str:
        """What the floor compares the champion's answers with."""
        return self.serving.routes.base if self.serving.k_is_fixed else best_of(self.serving.n)

    @property
    def value(self) -> float:
        """The win rate against `opponent` that the champion must not fall under."""
        return EVEN if self.serving.k_is_fixed and self._floor else self._floor

    async def check(self, live: LiveWinRate) -> None:
        """Act, if `live` asks for it and nobody has yet. Raises StoreError."""
        routes, k = self.serving.routes, self.serving.k
        if (live.version, live.opponent, live.k) != (routes.champion, self.opponent, k):
            return
        if not routes.distilled or not live.is_below(self.value):
            return
        reason = (
            f"the best of {k} draws of {live.version} won {live.win_rate:.3f} of the last {live.recent} comparisons "
            f"with {live.opponent} by the reward {live.reward_name} (95 % band {live.band.low:.3f} to "
            f"{live.band.high:.3f}), under the floor of {self.value:.3f}"
        )
        try:
            if 2 * k < self.serving.n and not self.serving.k_is_fixed:
                await self._raise_k(live.version, 2 * k, reason)
            else:
                await self._fall_back(live, reason)
        except Conflict as conflict:
            log.info("somebody else moved the champion first", reason=str(conflict))

    async def _raise_k(self, version: str, k: int, reason: str) -> None:
        await self.registry.raise_k(version, k, actor=ACTOR, reason=reason)
        self.metrics.raised_k()
        log.warning("the champion fell under the floor and answers with the best of more draws", k=k, reason=reason)

    async def _fall_back(self, live: LiveWinRate, reason: str) -> None:
        to = await self._last_good(live)
        await self.registry.fall_back(live.version, to, actor=ACTOR, reason=reason)
        self.metrics.fell_back()
        log.error("the champion fell under the floor; best-of-n answers again", version=to, reason=reason)

    async def _last_good(self, live: LiveWinRate) -> str:
        routes = self.serving.routes
        if routes.previous is not None and routes.previous != routes.base:
            for known in await read_win_rates(self.registry.database, routes.previous):
                same = (known.opponent, known.reward_name, known.reward_version)
                if same == (live.opponent, live.reward_name, live.reward_version) and known.band.low >= self.value:
                    return known.version
        return routes.base
