"""`GET /admin/win-rate`: the live win rates, and whether the champion reaches the minimum."""

from datetime import datetime

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from bonbon.pairs.live.savings import COUNTS, Savings, find_savings
from bonbon.pairs.live.win_rates import LiveWinRate, read_win_rates
from service.app_state import CurrentState
from service.routes.dependencies import require_admin
from service.routing.fallback import Fallback

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


class LiveWinRateBody(BaseModel):
    """Best-of-`k` of one version against one opponent, judged by one reward.

    `win_rate` and its 95 % confidence band, `low` to `high`, use the last `recent` comparisons and hold at all times
    simultaneously; `wins`, `ties` and `losses` count all comparisons. `below_floor` is whether the upper bound of the
    band, or of a shorter and newer one, is below the minimum win rate, if that applies to this opponent.
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
    """The last fallback to best-of-n: `version` answered in place of `replaced`, which was below the minimum win
    rate."""

    version: str
    replaced: str
    time: datetime
    reason: str


class SavingsBody(BaseModel):
    """Tokens generated for the champion's answers and their audits since `since`, and the estimate for best-of-`n`.

    `answer_tokens` were generated for `answers`, and `audit_tokens` for `audits` of them. `best_of_n_tokens` are the
    part of the latter that best-of-n generates for every answer. `saved_share` and `saved_tokens` are null until there
    is an answer and an audit.
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
    """The quality of the champion's answers, and what they save.

    `best_of_n` is whether the champion answers with best-of-n of `base` now, `k` how many candidates it samples, and
    `audit_fraction` the share of answers that is audited now. `floor` is the champion's minimum win rate against
    `floor_opponent`. `win_rates` begins with the most recently updated one. `savings` is null until the champion has
    answered as a distilled version.
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
async def show_win_rates(state: CurrentState) -> WinRatesBody:
    routes, fallback = state.router.routes, state.audits.fallback
    savings = await find_savings(state.database, routes.champion, state.router.n)
    events = await state.registry.history(1, kind="fell_back")
    return WinRatesBody(
        champion=routes.champion,
        base=routes.base,
        n=state.router.n,
        k=state.router.k,
        best_of_n=routes.best_of_n,
        audit_fraction=state.audits.fraction,
        floor=fallback.value,
        floor_opponent=fallback.opponent,
        savings=None if savings is None else _saved(savings),
        fallback=next((FallbackBody(version=e.version, time=e.time, **e.detail) for e in events), None),
        win_rates=[_body(live, fallback) for live in await read_win_rates(state.database)],
    )


def _saved(savings: Savings) -> SavingsBody:
    derived = {name for name in SavingsBody.model_fields if name not in COUNTS}
    return SavingsBody(
        **{name: getattr(savings.drawn, name) for name in COUNTS}, **{name: getattr(savings, name) for name in derived}
    )


def _body(live: LiveWinRate, fallback: Fallback) -> LiveWinRateBody:
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
        below_floor=live.opponent == fallback.opponent and live.is_below(fallback.value),
        updated=live.updated,
    )
