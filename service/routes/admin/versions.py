"""`/admin`: versions and aliases, promotion and rollback."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from bonbon.engines.engine import VersionKind
from bonbon.errors import Conflict
from bonbon.registry.version_records import Version, VersionState
from service.app_state import Parts, get_parts
from service.auth.admin_access import require_admin

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])

ACTOR = "admin api"
SERVED_WITHIN = 60.0
"""Seconds that a promotion's response waits for this process to serve it."""

TheParts = Annotated[Parts, Depends(get_parts)]


class VersionBody(BaseModel):
    """A registered version. `loaded`: it can be drawn from now; `references`: requests that hold it."""

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
    """Every version, oldest first."""

    versions: list[VersionBody]


class AliasesBody(BaseModel):
    """What the registry's aliases name, what each name means in this process now, and what it refused, with why."""

    aliases: dict[str, str]
    serving: dict[str, str]
    refused: dict[str, str]
    draining: list[str]


class PromoteBody(BaseModel):
    """`expected`: promote only while this is the champion."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1)
    expected: str | None = None


class PromotedBody(BaseModel):
    """The registry's champion, and whether this process answers with it already."""

    champion: str
    serving: str
    served: bool


@router.get("/versions")
async def list_versions(parts: TheParts) -> VersionsBody:
    versions = await parts.registry.list()
    return VersionsBody(versions=[_body(parts, version) for version in versions])


@router.get("/versions/{name}")
async def show_version(name: str, parts: TheParts) -> VersionBody:
    return _body(parts, await parts.registry.get(name))


@router.get("/aliases")
async def show_aliases(parts: TheParts) -> AliasesBody:
    return AliasesBody(
        aliases=await parts.registry.aliases(),
        serving=parts.serving.aliases(),
        refused={name: refusal.reason for name, refusal in parts.swapper.refused.items()},
        draining=sorted(parts.swapper.draining),
    )


@router.post("/promote", responses={202: {"model": PromotedBody}})
async def promote(body: PromoteBody, parts: TheParts, response: Response) -> PromotedBody:
    """Make a version the champion. 202 when it is not served yet, 409 when this process refuses to serve it."""
    version = await parts.registry.promote(body.version, expected=body.expected, actor=ACTOR)
    return await _served(parts, version.name, response)


@router.post("/rollback", responses={202: {"model": PromotedBody}})
async def rollback(parts: TheParts, response: Response) -> PromotedBody:
    """Make the previous champion the champion again; it is still loaded, so this takes effect at once."""
    version = await parts.registry.rollback(actor=ACTOR)
    return await _served(parts, version.name, response)


async def _served(parts: Parts, name: str, response: Response) -> PromotedBody:
    if parts.startup.failure is not None:
        response.status_code = 202
        return PromotedBody(champion=name, serving=parts.serving.champion, served=False)
    # Shielded: the swap goes on when the wait is over, or the client has left.
    converging = asyncio.ensure_future(parts.swapper.converge(retry=True))
    await asyncio.wait([converging], timeout=SERVED_WITHIN)
    serving = parts.serving.champion
    refusal = parts.swapper.refused.get(name)
    if serving != name and refusal is not None:
        raise Conflict(
            f"{name!r} is promoted in the registry, but this service cannot serve it: {refusal.reason}; "
            f"{serving!r} keeps answering"
        )
    if serving != name:
        response.status_code = 202
    return PromotedBody(champion=name, serving=serving, served=serving == name)


def _body(parts: Parts, version: Version) -> VersionBody:
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
        loaded=version.name in parts.serving.routes.loaded,
        references=parts.serving.references(version.name),
    )
