"""`/health`: is the process alive, and should it get requests?"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel
from starlette.requests import Request

from bonbon.errors import EngineError, StoreError
from service.parts import Parts, get_parts

router = APIRouter(prefix="/health", tags=["health"])

DATABASE_DEADLINE = 5.0


class Live(BaseModel):
    """The process answers."""

    status: str = "live"


class Ready(BaseModel):
    """Whether to send requests here, and what the alias is answered with.

    It is ready without its database, too, as long as groups can wait in the spool: then `reason` says so.
    `serving` differs from `champion` while a promotion is under way, and when the champion was refused: `refused`
    says why.
    """

    status: str
    reason: str | None = None
    champion: str | None = None
    serving: str
    refused: dict[str, str] = {}


@router.get("/live")
async def live() -> Live:
    return Live()


@router.get("/ready", responses={503: {"model": Ready}})
async def ready(request: Request, parts: Annotated[Parts, Depends(get_parts)], response: Response) -> Ready:
    champion, reason = None, "the service is stopping" if request.app.state.stopping else None
    serving = False
    if reason is None:
        try:
            parts.startup.check()
            await parts.engine.check()
            async with asyncio.timeout(DATABASE_DEADLINE):
                champion = await parts.registry.champion()
        except EngineError as error:
            reason = parts.startup.failure or f"the engine cannot draw: {error}"
        except (StoreError, OSError) as error:  # a TimeoutError is an OSError
            reason = f"the database does not answer: {type(error.__cause__ or error).__name__}"
            serving = parts.pair_log.can_wait
    if reason is not None and not serving:
        response.status_code = 503
    return Ready(
        status="unready" if reason and not serving else "ready",
        reason=reason,
        champion=champion,
        serving=parts.serving.champion,
        refused={name: refusal.reason for name, refusal in parts.swapper.refused.items()},
    )
