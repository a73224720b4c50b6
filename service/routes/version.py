"""`/version`, compatible with vLLM's server."""

from fastapi import APIRouter
from pydantic import BaseModel

from bonbon import __version__

router = APIRouter(tags=["version"])


class Release(BaseModel):
    """Return the release of bonbon."""

    version: str


@router.get("/version")
async def version() -> Release:
    return Release(version=__version__)
