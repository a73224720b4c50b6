"""`/admin/playground`: answers one prompt with best-of-n and with a version, side by side, without logging it."""

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from bonbon.engines.candidates import collect
from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.errors import RewardError, UserError
from bonbon.prompt import Prompt
from bonbon.store.storable_text import REASON_LENGTH, clean_name
from bonbon.theory import win_fraction
from service.app_state import AppState, CurrentState
from service.middleware.disconnect import unless_disconnected
from service.middleware.readiness import require_engine
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin), Depends(require_engine)])


class PlaygroundBody(BaseModel):
    """`version` generates the candidate that is shown beside the base's n candidates; by default it is the champion."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=20_000)
    n: int = Field(8, ge=2, le=128)
    version: str | None = None
    max_tokens: int = Field(256, ge=1, le=4096)
    temperature: float = Field(1.0, gt=0, le=2)


class DrawBody(BaseModel):
    """A text with its reward, which is None if the reward failed.

    `win_probability` is, for one of the base's candidates, its rank divided by n + 1, and for the version's candidate
    the share of the base's candidates that it beats.
    """

    text: str
    tokens: int
    reward: float | None
    win_probability: float | None


class PlayedBody(BaseModel):
    """The base's candidates, best first, and one candidate of `version`. `problem` explains why there are no
    rewards."""

    base: str
    version: str
    reward: str
    candidates: list[DrawBody]
    draw: DrawBody
    problem: str | None


@router.post("/playground")
async def play(body: PlaygroundBody, request: Request, state: CurrentState) -> PlayedBody:
    return await unless_disconnected(request.receive, _play(body, state), state.cut_off)


async def _play(body: PlaygroundBody, state: AppState) -> PlayedBody:
    if body.n > state.settings.service.max_best_of:
        raise UserError(f"n {body.n} is above this service's limit of {state.settings.service.max_best_of}", param="n")
    best_of_n, prompt = state.best_of_n, Prompt.user(body.prompt)
    sampling = Sampling(max_tokens=body.max_tokens, temperature=body.temperature)
    async with state.admission.admit("", (body.n + 1) * body.max_tokens):
        await state.router.admitted()
        routes = state.router.routes
        version = body.version or routes.champion
        with state.router.hold(routes.base), state.router.hold(version):
            group = (await best_of_n(prompt, body.n, version=routes.base, sampling=sampling)).group
            drawn = (await collect(best_of_n.engine, DrawRequest(prompt, version, 1, sampling))).draws[0]
    problem, reward = group.degraded, None
    if problem is None:
        try:
            (reward,) = await best_of_n.score(prompt, [drawn.written])
        except RewardError as error:
            problem = clean_name(str(error), REASON_LENGTH)
    rewards = [c.reward for c in group.candidates if c.reward is not None]
    return PlayedBody(
        base=routes.base,
        version=version,
        reward=group.reward_name,
        candidates=[
            DrawBody(text=c.text, tokens=len(c.token_ids), reward=c.reward, win_probability=c.win_probability)
            for c in sorted(group.candidates, key=lambda c: -(c.rank or 0))
        ],
        draw=DrawBody(
            text=drawn.written,
            tokens=len(drawn.token_ids),
            reward=reward,
            win_probability=None if reward is None else win_fraction([reward], rewards),
        ),
        problem=problem,
    )
