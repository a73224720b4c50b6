"""`GET /admin/win-rate`: what the audits show of the versions, and whether the floor holds."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from bonbon.pairs.live.savings import COUNTS, Savings, find_savings
from bonbon.pairs.live.win_rates import LiveWinRate, read_win_rates
from service.app_state import AppState, get_state
from service.routes.dependencies import require_admin
from service.routing.fallback import Fallback

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


class LiveWinRateBody(BaseModel):
    """The best of `k` draws of one version against one opponent, judged by one reward.

    `win_rate` and its 95 % band, `low` to `high`, rest on the last `recent` comparisons and hold however often one
    looks; `wins`, `ties` and `losses` count all there ever were. `below_floor`: the band's upper end, or that of a
    shorter and newer band, is under the floor, if it is with this opponent that the floor compares.
    """

    version: str
    k: int
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


class SavingsBody(BaseModel):
    """Tokens that the champion's answers and their audits have taken since `since`, and what best-of-`n` would have.

    `answer_tokens` were drawn for `answers`, `audit_tokens` for `audits` of them, `best_of_n_tokens` of those as
    best-of-n draws for every answer. `saved_share` and `saved_tokens` are null until there are an answer and an audit.
    """

    n: int
    answers: int
    answer_tokens: int
    audits: int
    audit_tokens: int
    best_of_n_tokens: int
    tokens_per_answer: float | None
    best_of_n_tokens_per_answer: float | None
    saved_share: float | None
    saved_tokens: int | None
    since: datetime
    updated: datetime


class WinRatesBody(BaseModel):
    """How good the champion's answers are, and what they save.

    `best_of_n`: the champion answers with best-of-n of `base` now, and `k`: with the best of how many draws.
    `audit_fraction` of the answers are audited now. The champion must not fall under `floor` against `floor_opponent`.
    `win_rates`: the one counted last first. `savings` is null until the champion has answered as a distilled version.
    """

    champion: str
    base: str
    n: int
    k: int
    best_of_n: bool
    audit_fraction: float
    floor: float
    floor_opponent: str
    savings: SavingsBody | None
    fallback: FallbackBody | None
    win_rates: list[LiveWinRateBody]


@router.get("/win-rate")
async def show_win_rates(state: Annotated[AppState, Depends(get_state)]) -> WinRatesBody:
    routes, floor = state.serving.routes, state.audits.floor
    savings = await find_savings(state.database, routes.champion, state.serving.n)
    events = await state.registry.history(1, kind="fell_back")
    return WinRatesBody(
        champion=routes.champion,
        base=routes.base,
        n=state.serving.n,
        k=state.serving.k,
        best_of_n=routes.best_of_n,
        audit_fraction=state.audits.fraction,
        floor=floor.value,
        floor_opponent=floor.opponent,
        savings=None if savings is None else _saved(savings),
        fallback=next((FallbackBody(version=e.version, time=e.time, **e.detail) for e in events), None),
        win_rates=[_body(live, floor) for live in await read_win_rates(state.database)],
    )


def _saved(savings: Savings) -> SavingsBody:
    derived = {name for name in SavingsBody.model_fields if name not in COUNTS}
    return SavingsBody(
        **{name: getattr(savings.drawn, name) for name in COUNTS}, **{name: getattr(savings, name) for name in derived}
    )


def _body(live: LiveWinRate, floor: Fallback) -> LiveWinRateBody:
    return LiveWinRateBody(
        version=live.version,
        k=live.k,
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
        below_floor=live.opponent == floor.opponent and live.is_below(floor.value),
        updated=live.updated,
    )
