"""Refuses requests until the engine is ready."""

from fastapi import Request

from service.app_state import get_state


async def require_engine(request: Request) -> None:
    """A FastAPI dependency that lets requests pass once the engine is ready.

    Raises:
        EngineError: The engine is not ready; the client gets a 503.
    """
    get_state(request).startup.check()
