"""`/admin/pairs` and `/admin/rounds`: statistics of the pair log and the progress of training rounds."""

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from bonbon.errors import Overloaded
from bonbon.pairs.reading.pair_stats import PairStats
from bonbon.registry.next_round import next_round
from bonbon.registry.round_progress import RoundProgress, read_rounds
from service.app_state import CurrentState
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


class RoundsBody(BaseModel):
    """The newest rounds, newest first. The next round starts when the champion has `needed` `new_groups`; with null,
    none starts by itself. `waits_for` describes this in a sentence."""

    champion: str
    new_groups: int
    needed: int | None
    waits_for: str
    rounds: tuple[RoundProgress, ...]


@router.get("/pairs")
async def show_pairs(state: CurrentState) -> PairStats:
    try:
        return await state.pair_stats()
    except TimeoutError as error:
        raise Overloaded("the pair log is still being counted; try again later") from error


@router.get("/rounds")
async def show_rounds(state: CurrentState) -> RoundsBody:
    champion = await state.registry.get(state.router.champion)
    upcoming = await next_round(state.registry, champion, state.settings)
    return RoundsBody(
        champion=champion.name,
        new_groups=upcoming.groups,
        needed=upcoming.needed,
        waits_for=upcoming.waits_for,
        rounds=await read_rounds(state.database),
    )
