"""`/admin/playground`: answers one prompt with best-of-n and with a version, side by side, without logging it."""

from collections.abc import Callable
from contextlib import aclosing

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from bonbon.engines.candidates import Draw, collect, start_drawing
from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.errors import RewardError, UserError
from bonbon.prompt import Prompt
from bonbon.store.storable_text import REASON_LENGTH, clean_name
from bonbon.theory import mid_ranks, win_fraction
from service.answering import sse
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
    stream: bool = False


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


@router.post("/playground", response_model=PlayedBody)
async def play(body: PlaygroundBody, request: Request, state: CurrentState) -> Response | PlayedBody:
    """Answer one prompt both ways. With `stream`, events have the pieces of the version's candidate as `text`, and the
    last one has all of the answer as `played`."""
    if body.n > state.settings.service.max_best_of:
        raise UserError(f"n {body.n} is above this service's limit of {state.settings.service.max_best_of}", param="n")
    if not body.stream:
        return await unless_disconnected(request.receive, _play(body, state, lambda text: None), state.cut_off)

    async def write(put: Callable[[bytes], None]) -> None:
        played = await _play(body, state, lambda text: put(sse.data({"text": text})))
        put(sse.data({"played": played.model_dump()}))

    buffer = state.send_buffers.open()
    return await sse.EventStream.open(
        write, lambda problem: sse.data(problem.envelope), buffer, request.receive, state.cut_off
    )


async def _play(body: PlaygroundBody, state: AppState, show: Callable[[str], None]) -> PlayedBody:
    """Passes the pieces of the version's candidate to `show` as they are drawn, and returns the scored answer."""
    best_of_n, prompt = state.best_of_n, Prompt.user(body.prompt)
    sampling = Sampling(max_tokens=body.max_tokens, temperature=body.temperature)
    async with state.admission.admit("", (body.n + 1) * body.max_tokens):
        await state.router.admitted()
        routes = state.router.routes
        version = body.version or routes.champion
        with state.router.hold(routes.base), state.router.hold(version):
            draws, deltas = await start_drawing(
                best_of_n.engine, DrawRequest(prompt, version, 1, sampling, deltas=True)
            )
            async with aclosing(deltas):
                async for delta in deltas:
                    draws.add(delta)
                    show(delta.text)
            (drawn,) = draws.draws
            candidates = (await collect(best_of_n.engine, DrawRequest(prompt, routes.base, body.n, sampling))).draws
    problem = None
    rewards: list[float | None] = [None] * body.n
    wins: list[float | None] = [None] * body.n
    reward = won = None
    try:
        # One call: a reward may score a text against the other texts of its call.
        *scores, reward = await best_of_n.score(prompt, [one.written for one in (*candidates, drawn)])
    except RewardError as error:
        problem = clean_name(str(error), REASON_LENGTH)
    else:
        rewards, wins = [*scores], [mid_rank / (body.n + 1) for mid_rank in mid_ranks(scores)]
        won = win_fraction([reward], scores)
    shown = [_shown(*one) for one in zip(candidates, rewards, wins, strict=True)]
    return PlayedBody(
        base=routes.base,
        version=version,
        reward=best_of_n.reward.name,
        candidates=sorted(shown, key=lambda one: -(one.win_probability or 0)),
        draw=_shown(drawn, reward, won),
        problem=problem,
    )


def _shown(draw: Draw, reward: float | None, win_probability: float | None) -> DrawBody:
    return DrawBody(text=draw.written, tokens=len(draw.token_ids), reward=reward, win_probability=win_probability)
