"""`/v1/groups` and `/v1/pairs`: let a tenant read and delete its own part of the log."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from bonbon.erase import erase
from bonbon.errors import UserError
from bonbon.keys.key_records import Scope
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_rows import group_document
from bonbon.pairs.reading.pair_export import as_json_line
from bonbon.pairs.reading.reader import pairs
from service.app_state import get_state
from service.auth.access import caller
from service.rendering.degraded import degraded_reason
from service.routes.dependencies import allow
from service.schemas.replies import Deleted
from service.schemas.statuses import ERRORS, Responses

router = APIRouter(prefix="/v1", tags=["groups"])

DELETES = [Depends(allow(Scope.DELETE))]
READS = [Depends(allow(Scope.EXPORT))]
REFUSALS: Responses = {status: ERRORS[status] for status in (400, 401, 403, 503)}
Name = Annotated[str | None, Query(min_length=1, max_length=512)]


@router.get("/groups/{group_id}", response_class=Response, dependencies=READS, responses={**REFUSALS, 404: ERRORS[404]})
async def show_group(group_id: str, request: Request) -> Response:
    """Return a group with all its candidates."""
    group = await get_state(request).pair_log.group(group_id)
    if group is None or group.tenant != caller(request).tenant:
        raise HTTPException(404, f"there is no group {group_id[:64]!r} in the log")
    return JSONResponse(group_document(group) | {"degraded": degraded_reason(group)})


@router.get("/pairs", response_class=Response, dependencies=READS, responses=REFUSALS)
async def export_pairs(request: Request, version: Name = None) -> Response:
    """Return the best and worst candidate of every clean group as JSON lines, in the format of `bonbon pairs export`.

    Groups that the tenant's own reward ranked are included.
    """
    database, tenant = get_state(request).database, caller(request).tenant
    found = pairs(database, version=version, tenants=[tenant], own_rewards=True)
    first = await anext(found, None)  # an error before the first pair can still become a status

    async def lines() -> AsyncIterator[str]:
        async with aclosing(found):
            if first is not None:
                yield as_json_line(first)
            async for pair in found:
                yield as_json_line(pair)

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.delete("/groups", dependencies=DELETES, responses={200: {"model": Deleted}, **REFUSALS})
async def delete_groups(request: Request, user: Name = None, request_id: Name = None) -> Deleted:
    """Delete the groups of an end user or a request, and return the versions that were trained on any of them."""
    if user is None and request_id is None:
        raise UserError("name the groups to delete by user, request_id, or both", param="user")
    state, settings = get_state(request), get_state(request).settings
    conditions = Conditions(user=user, request_id=request_id, tenant=caller(request).tenant)
    await state.pair_log.forget(conditions)
    erased = await erase(state.database, settings.runs_dir, conditions, spool_dir=settings.spool_dir)
    lineage = erased.lineage
    return Deleted(deleted=erased.groups, trained=list(lineage.trained), descended=list(lineage.descended))
