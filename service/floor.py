"""The floor under the live win rate: when the champion falls through it, best-of-n answers again."""

import structlog

from bonbon.errors import Conflict
from bonbon.pairs.win_rates import LiveWinRate, read_win_rates
from bonbon.registry.registry import Registry
from service.metrics import Metrics
from service.serving import Serving

log = structlog.get_logger(__name__)


class Floor:
    """Watches the live win rate of the champion's answers against one draw of the base.

    When its upper bound is under `floor`, the champion is replaced in the registry, so that every gateway follows, by
    best-of-n of the last version that is known to be good: `previous`, if its own live win rate by the same reward has
    its lower bound at or above the floor, else the base, whose best-of-n owes nothing to training.
    """

    def __init__(self, registry: Registry, serving: Serving, metrics: Metrics, floor: float) -> None:
        self.registry, self.serving, self.metrics, self.floor = registry, serving, metrics, floor

    async def check(self, live: LiveWinRate) -> None:
        """Fall back, if `live` asks for it and nobody has yet. Raises StoreError."""
        routes = self.serving.routes
        if (live.version, live.opponent) != (routes.champion, routes.base) or not live.is_below(self.floor):
            return
        to = await self._last_good(live)
        reason = (
            f"{live.version} won {live.win_rate:.3f} of its last {live.recent} comparisons with {live.opponent} by the "
            f"reward {live.reward_name} (95 % band {live.band.low:.3f} to {live.band.high:.3f}), under the floor of "
            f"{self.floor:.3f}"
        )
        try:
            await self.registry.fall_back(live.version, to, actor="win-rate floor", reason=reason)
        except Conflict as conflict:
            log.info("somebody else moved the champion first", reason=str(conflict))
            return
        self.metrics.fell_back()
        log.error("the champion fell under the floor; best-of-n answers again", version=to, reason=reason)

    async def _last_good(self, live: LiveWinRate) -> str:
        routes = self.serving.routes
        if routes.previous is not None and routes.previous != routes.base:
            for known in await read_win_rates(self.registry.database, routes.previous):
                same = (known.opponent, known.reward_name, known.reward_version)
                if same == (live.opponent, live.reward_name, live.reward_version) and known.band.low >= self.floor:
                    return known.version
        return routes.base
