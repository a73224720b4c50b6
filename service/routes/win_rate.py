"""`GET /admin/win-rate`: what the audits show of the versions, and whether the floor holds."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from bonbon.pairs.win_rates import LiveWinRate, read_win_rates
from service.admin_access import require_admin
from service.parts import Parts, get_parts

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


class LiveWinRateBody(BaseModel):
    """One version's answers against one opponent, judged by one reward.

    `win_rate` and its 95 % band, `low` to `high`, rest on the last `recent` comparisons and hold however often one
    looks; `wins`, `ties` and `losses` count all there ever were. `below_floor`: the band's upper end, or that of a
    shorter and newer band, is under the floor.
    """

    version: str
    opponent: str
    reward: str
    reward_version: str
    wins: int
    ties: int
    losses: int
    recent: int
    win_rate: float
    low: float
    high: float
    below_floor: bool
    updated: datetime


class FallbackBody(BaseModel):
    """The last time that a champion fell under the floor: `version` answered in its place, with best-of-n."""

    version: str
    replaced: str
    time: datetime
    reason: str


class WinRatesBody(BaseModel):
    """`best_of_n`: the champion answers with best-of-n now, and `k`: with the best of how many draws. `win_rates`: the
    one counted last first."""

    champion: str
    k: int
    best_of_n: bool
    floor: float
    fallback: FallbackBody | None
    win_rates: list[LiveWinRateBody]


@router.get("/win-rate")
async def show_win_rates(parts: Annotated[Parts, Depends(get_parts)]) -> WinRatesBody:
    routes, floor = parts.serving.routes, parts.settings.service.win_rate_floor
    events = await parts.registry.history(1, kind="fell_back")
    return WinRatesBody(
        champion=routes.champion,
        k=parts.serving.k,
        best_of_n=routes.best_of_n,
        floor=floor,
        fallback=next((FallbackBody(version=e.version, time=e.time, **e.detail) for e in events), None),
        win_rates=[_body(live, floor) for live in await read_win_rates(parts.database)],
    )


def _body(live: LiveWinRate, floor: float) -> LiveWinRateBody:
    return LiveWinRateBody(
        version=live.version,
        opponent=live.opponent,
        reward=live.reward_name,
        reward_version=live.reward_version,
        wins=live.wins,
        ties=live.ties,
        losses=live.losses,
        recent=live.recent,
        win_rate=live.win_rate,
        low=live.band.low,
        high=live.band.high,
        below_floor=live.is_below(floor),
        updated=live.updated,
    )
