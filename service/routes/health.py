"""`/health`: reports whether the process is alive and whether it should get requests."""

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.requests import Request

from bonbon.errors import EngineError, StoreError, StoreUnavailable
from service.app_state import AppState, CurrentState

router = APIRouter(prefix="/health", tags=["health"])


class Live(BaseModel):
    """The process is alive."""

    status: str = "live"


class Ready(BaseModel):
    """Whether to send requests here, and which version answers for the alias.

    The service is ready without its database, too, as long as groups can wait in the spool; `reason` then describes the
    problem. `serving` differs from `champion` during a promotion, and if the champion was refused; `refused` gives the
    reason.
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
async def ready(request: Request, state: CurrentState, response: Response) -> Ready:
    champion, reason = None, "the service is stopping" if request.app.state.stopping else None
    serving = False
    if reason is None:
        try:
            state.startup.check()
            await state.engine.check()
            champion = await _champion(state)
        except EngineError as error:
            reason = state.startup.failure or f"the engine cannot generate: {error}"
        except StoreError as error:
            away = isinstance(error, StoreUnavailable)
            reason = f"the database {'is unavailable' if away else 'rejects groups'}: {error.why}"
            serving = state.pair_log.can_wait
    if reason is not None and not serving:
        response.status_code = 503
    return Ready(
        status="unready" if reason and not serving else "ready",
        reason=reason,
        champion=champion,
        serving=state.router.champion,
        refused={name: refusal.reason for name, refusal in state.swapper.refused.items()},
    )


async def _champion(state: AppState) -> str | None:
    """Returns the registry's champion.

    Raises:
        StoreError: The registry cannot be read within a short deadline, or the pair log cannot be written.
    """
    health = state.pair_log.health
    health.raise_failure(StoreUnavailable)
    try:
        champion = await state.champion()
    except TimeoutError as error:
        raise StoreUnavailable("the champion cannot be read", why="the database does not respond in time") from error
    health.raise_failure()
    return champion
