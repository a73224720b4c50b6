"""`/admin/charts`: data for the console's charts of win rates, divergences and the pair log."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from bonbon.curve.best_of_k import make_curve
from bonbon.curve.group_selection import select_groups
from bonbon.pairs.live.win_rate_history import WinRateHistory, read_win_rate_history
from bonbon.theory import Estimate, best_of_n_kl, best_of_n_win_rate, frontier_win_rate
from service.app_state import CurrentState
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin/charts", tags=["admin"], dependencies=[Depends(require_admin)])

STEPS = 80


class PointBody(BaseModel):
    """KL divergence from the base in nats, and win rate against it; `n` is set for best-of-n."""

    kl: float
    win_rate: float
    n: int | None = None


class FrontierBody(BaseModel):
    """`frontier` is the highest win rate that any policy can reach at a divergence; `best_of_n` has n = 1, 2, 4, ..."""

    frontier: list[PointBody]
    best_of_n: list[PointBody]


class BestOfKBody(BaseModel):
    """Best-of-k: the expected reward, the gain of the k-th candidate, and the win rate against one candidate."""

    k: int
    reward: Estimate
    gain: Estimate | None
    win_rate: Estimate | None


class CurveBody(BaseModel):
    """The curve over `groups` logged groups of `version`. After k = `stops_at`, another candidate is not worth its
    cost."""

    version: str
    reward: str
    groups: int
    stops_at: int | None
    points: list[BestOfKBody]


@router.get("/frontier")
def frontier(kl: Annotated[float, Query(gt=0, le=20)] = 3.0) -> FrontierBody:
    """Return the frontier for divergences up to `kl` nats."""
    grid = [kl * (step / STEPS) ** 2 for step in range(STEPS + 1)]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if best_of_n_kl(n) <= kl]
    return FrontierBody(
        frontier=[PointBody(kl=x, win_rate=frontier_win_rate(x)) for x in grid],
        best_of_n=[PointBody(kl=best_of_n_kl(n), win_rate=best_of_n_win_rate(n), n=n) for n in ns],
    )


@router.get("/win-rate")
async def win_rate(state: CurrentState, version: str | None = None, opponent: str | None = None) -> WinRateHistory:
    """Return the history of a live win rate, by default the champion's against the base."""
    return await read_win_rate_history(
        state.database, version=version or state.router.champion, opponent=opponent or state.router.routes.base
    )


@router.get("/best-of-k")
async def best_of_k(
    state: CurrentState, version: str | None = None, newest: Annotated[int, Query(ge=2, le=10_000)] = 2000
) -> CurveBody:
    """Return the curve of best-of-k over the newest groups in the log. With too few groups the answer is a 400."""
    curve = await make_curve(state.database, await select_groups(state.database, version=version, newest=newest))
    return CurveBody(
        version=curve.kind.version,
        reward=curve.kind.reward.name,
        groups=curve.groups,
        stops_at=curve.stops_at,
        points=[
            BestOfKBody(k=point.k, reward=point.reward, gain=point.gain, win_rate=point.win_rate)
            for point in curve.points
        ],
    )
