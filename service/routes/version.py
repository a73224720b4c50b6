"""`/version`, as vLLM's servers have it."""

from fastapi import APIRouter
from pydantic import BaseModel

from bonbon import __version__

router = APIRouter(tags=["version"])


class Release(BaseModel):
    """The release of bonbon that answers."""

    version: str


@router.get("/version")
async def version() -> Release:
    return Release(version=__version__)
