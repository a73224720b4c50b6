"""`/admin/pairs` and `/admin/rounds`: what has been logged, and what is being made of it."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from bonbon.pairs.reading.reader import stats
from bonbon.registry.next_round import next_round
from bonbon.registry.round_progress import RoundStage, read_rounds
from service.app_state import AppState, get_state
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])

TheParts = Annotated[AppState, Depends(get_state)]


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
    """A round of training: `epoch` of `epochs` are done. `curve`: epoch, loss, margin and its target."""

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
    """The newest rounds, newest first. The next begins when there are `needed` `new_groups` of the champion; null: it
    does not begin by itself. `waits_for` says so in a sentence."""

    champion: str
    new_groups: int
    needed: int | None
    waits_for: str
    rounds: list[RoundBody]


@router.get("/pairs")
async def show_pairs(state: TheParts) -> PairsBody:
    found = await stats(state.database)
    return PairsBody(**{name: getattr(found, name) for name in PairsBody.model_fields})


@router.get("/rounds")
async def show_rounds(state: TheParts) -> RoundsBody:
    champion = await state.registry.get(state.serving.champion)
    due = await next_round(state.registry, champion, state.settings)
    rounds = await read_rounds(state.database)
    return RoundsBody(
        champion=champion.name,
        new_groups=due.groups,
        needed=due.needed,
        waits_for=due.waits_for,
        rounds=[RoundBody(**{name: getattr(r, name) for name in RoundBody.model_fields}) for r in rounds],
    )
