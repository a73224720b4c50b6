"""Nothing is answered before the engine can draw."""

from fastapi import Request

from service.app_state import get_state


async def require_engine(request: Request) -> None:
    """A FastAPI dependency that lets requests in once the engine is up. Raises EngineError, which becomes a 503."""
    get_state(request).startup.check()
