"""`/admin/charts`: what the console draws of win rates, divergences and the pair log."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from bonbon.curve.best_of_k import make_curve
from bonbon.curve.group_selection import select_groups
from bonbon.pairs.live.win_rate_history import read_win_rate_history
from bonbon.theory import Estimate, best_of_n_kl, best_of_n_win_rate, frontier_win_rate
from service.app_state import AppState, get_state
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin/charts", tags=["admin"], dependencies=[Depends(require_admin)])

TheParts = Annotated[AppState, Depends(get_state)]
STEPS = 80


class PointBody(BaseModel):
    """KL from the base in nats, and the win rate against it. `n` where it is best-of-n's."""

    kl: float
    win_rate: float
    n: int | None = None


class FrontierBody(BaseModel):
    """`frontier`: the highest win rate any policy can have at that KL. `best_of_n`: for n = 1, 2, 4, ..."""

    frontier: list[PointBody]
    best_of_n: list[PointBody]


class BandBody(BaseModel):
    """The win rate after `count` comparisons, ties as half, and its 95 % band, which hold however often one looks."""

    count: int
    time: datetime
    win_rate: float
    low: float
    high: float


class HistoryBody(BaseModel):
    """The audits of the best of `k` draws of `version` against `opponent`, at most the newest 2000 in the log."""

    version: str
    opponent: str
    k: int
    wins: int
    ties: int
    losses: int
    points: list[BandBody]


class EstimateBody(BaseModel):
    """With its 95 % interval."""

    value: float
    low: float
    high: float


class BestOfKBody(BaseModel):
    """Best-of-k: expected reward, what the k-th draw adds, and the win rate against one draw."""

    k: int
    reward: EstimateBody
    gain: EstimateBody | None
    win_rate: EstimateBody | None


class CurveBody(BaseModel):
    """From `groups` logged groups of `version`. `stops_at`: the k after which one more draw pays no more."""

    version: str
    reward: str
    groups: int
    stops_at: int | None
    points: list[BestOfKBody]


@router.get("/frontier")
def frontier(kl: Annotated[float, Query(gt=0, le=20)] = 3.0) -> FrontierBody:
    """Up to `kl` nats."""
    grid = [kl * (step / STEPS) ** 2 for step in range(STEPS + 1)]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if best_of_n_kl(n) <= kl]
    return FrontierBody(
        frontier=[PointBody(kl=x, win_rate=frontier_win_rate(x)) for x in grid],
        best_of_n=[PointBody(kl=best_of_n_kl(n), win_rate=best_of_n_win_rate(n), n=n) for n in ns],
    )


@router.get("/win-rate")
async def win_rate(state: TheParts, version: str | None = None, opponent: str | None = None) -> HistoryBody:
    """By default the champion's, against the base."""
    history = await read_win_rate_history(
        state.database, version=version or state.serving.champion, opponent=opponent or state.serving.routes.base
    )
    return HistoryBody(
        version=history.version,
        opponent=history.opponent,
        k=history.k,
        wins=history.wins,
        ties=history.ties,
        losses=history.losses,
        points=[BandBody(**asdict(point)) for point in history.points],
    )


@router.get("/best-of-k")
async def best_of_k(
    state: TheParts, version: str | None = None, newest: Annotated[int, Query(ge=2, le=10_000)] = 2000
) -> CurveBody:
    """From the newest groups of the log; 400 when there are too few."""
    curve = await make_curve(state.database, await select_groups(state.database, version=version, newest=newest))
    return CurveBody(
        version=curve.kind.version,
        reward=curve.kind.reward.name,
        groups=curve.groups,
        stops_at=curve.stops_at,
        points=[
            BestOfKBody(
                k=point.k,
                reward=_estimate(point.reward),
                gain=point.gain and _estimate(point.gain),
                win_rate=point.win_rate and _estimate(point.win_rate),
            )
            for point in curve.points
        ],
    )


def _estimate(estimate: Estimate) -> EstimateBody:
    return EstimateBody(value=estimate.value, low=estimate.low, high=estimate.high)
