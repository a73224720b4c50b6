"""`/admin`: versions and aliases, promotion and rollback."""

import asyncio
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from bonbon.engines.engine import VersionKind
from bonbon.errors import Conflict
from bonbon.registry.version_records import Version, VersionState
from service.app_state import AppState, CurrentState
from service.routes.dependencies import require_admin

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])

ACTOR = "admin api"
SERVED_WITHIN = 60.0
"""Seconds that the response to a promotion waits until this process serves the version."""


class VersionBody(BaseModel):
    """A registered version. `loaded` is whether it can generate now; `references` counts the requests that hold it."""

    name: str
    base: str
    parent: str | None
    kind: VersionKind
    state: VersionState
    digest: str
    created: datetime
    training: dict[str, Any]
    evaluation: dict[str, Any]
    verdict: dict[str, Any] | None
    loaded: bool
    references: int


class VersionsBody(BaseModel):
    """All versions, oldest first."""

    versions: list[VersionBody]


class AliasesBody(BaseModel):
    """The registry's aliases, the version behind each name in this process, and the refused versions with the
    reasons."""

    aliases: dict[str, str]
    serving: dict[str, str]
    refused: dict[str, str]
    draining: list[str]


class PromoteBody(BaseModel):
    """`expected` restricts the promotion to the case that this version is the current champion."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1)
    expected: str | None = None


class PromotedBody(BaseModel):
    """The registry's champion, and whether this process answers with it already."""

    champion: str
    serving: str
    served: bool


@router.get("/versions")
async def list_versions(state: CurrentState) -> VersionsBody:
    versions = await state.registry.list()
    return VersionsBody(versions=[_body(state, version) for version in versions])


@router.get("/versions/{name}")
async def show_version(name: str, state: CurrentState) -> VersionBody:
    return _body(state, await state.registry.get(name))


@router.get("/aliases")
async def show_aliases(state: CurrentState) -> AliasesBody:
    return AliasesBody(
        aliases=await state.registry.aliases(),
        serving=state.router.aliases(),
        refused={name: refusal.reason for name, refusal in state.swapper.refused.items()},
        draining=sorted(state.swapper.draining),
    )


@router.post("/promote", responses={202: {"model": PromotedBody}})
async def promote(body: PromoteBody, state: CurrentState, response: Response) -> PromotedBody:
    """Make a version the champion. The status is 202 if it is not served yet, 409 if this process cannot serve it."""
    version = await state.registry.promote(body.version, expected=body.expected, actor=ACTOR)
    return await _served(state, version.name, response)


@router.post("/rollback", responses={202: {"model": PromotedBody}})
async def rollback(state: CurrentState, response: Response) -> PromotedBody:
    """Make the previous champion the champion again. It is still loaded, so this takes effect at once."""
    version = await state.registry.rollback(actor=ACTOR)
    return await _served(state, version.name, response)


async def _served(state: AppState, name: str, response: Response) -> PromotedBody:
    if state.startup.failure is not None:
        response.status_code = 202
        return PromotedBody(champion=name, serving=state.router.champion, served=False)
    # The swap is shielded: it continues after the wait, or if the client disconnects.
    converging = asyncio.ensure_future(state.swapper.converge(retry=True))
    await asyncio.wait([converging], timeout=SERVED_WITHIN)
    serving = state.router.champion
    refusal = state.swapper.refused.get(name)
    if serving != name and refusal is not None:
        raise Conflict(
            f"{name!r} is promoted in the registry, but this service cannot serve it: {refusal.reason}; "
            f"{serving!r} continues to answer"
        )
    if serving != name:
        response.status_code = 202
    return PromotedBody(champion=name, serving=serving, served=serving == name)


def _body(state: AppState, version: Version) -> VersionBody:
    return VersionBody(
        name=version.name,
        base=version.base,
        parent=version.parent,
        kind=version.kind,
        state=version.state,
        digest=version.digest,
        created=version.created,
        training=version.training,
        evaluation=version.evaluation,
        verdict=version.verdict,
        loaded=version.name in state.router.routes.loaded,
        references=state.router.references(version.name),
    )
