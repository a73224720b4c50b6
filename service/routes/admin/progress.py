"""`/admin/pairs` and `/admin/rounds`: statistics of the pair log and the progress of training rounds."""

from datetime import datetime

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from bonbon.errors import Overloaded
from bonbon.registry.next_round import next_round
from bonbon.registry.round_progress import RoundStage, read_rounds
from service.app_state import CurrentState
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


class PairsBody(BaseModel):
    """Counts over the whole pair log: `unclean` by reason, `versions` and `rewards` by name."""

    groups: int
    clean: int
    unclean: dict[str, int]
    versions: dict[str, int]
    rewards: dict[str, int]
    candidates: int
    mean_margin: float | None
    feedback: int
    first: datetime | None
    last: datetime | None


class RoundBody(BaseModel):
    """A training round that has completed `epoch` of `epochs`. `curve` lists epoch, loss, margin and target margin."""

    id: str
    run: str
    sampler: str
    stage: RoundStage
    epoch: float
    epochs: float
    curve: list[tuple[float, float | None, float | None, float | None]]
    version: str | None
    outcome: str | None
    started: datetime
    updated: datetime


class RoundsBody(BaseModel):
    """The newest rounds, newest first. The next round starts when the champion has `needed` `new_groups`; with null,
    none starts by itself. `waits_for` describes this in a sentence."""

    champion: str
    new_groups: int
    needed: int | None
    waits_for: str
    rounds: list[RoundBody]


@router.get("/pairs")
async def show_pairs(state: CurrentState) -> PairsBody:
    try:
        found = await state.pair_stats()
    except TimeoutError as error:
        raise Overloaded("the pair log is still being counted; try again later") from error
    return PairsBody(**{name: getattr(found, name) for name in PairsBody.model_fields})


@router.get("/rounds")
async def show_rounds(state: CurrentState) -> RoundsBody:
    champion = await state.registry.get(state.router.champion)
    upcoming = await next_round(state.registry, champion, state.settings)
    rounds = await read_rounds(state.database)
    return RoundsBody(
        champion=champion.name,
        new_groups=upcoming.groups,
        needed=upcoming.needed,
        waits_for=upcoming.waits_for,
        rounds=[RoundBody(**{name: getattr(r, name) for name in RoundBody.model_fields}) for r in rounds],
    )
