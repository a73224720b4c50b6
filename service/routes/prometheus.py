"""`/metrics`, for Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from service.app_state import Parts, get_parts

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(parts: Annotated[Parts, Depends(get_parts)]) -> Response:
    await parts.stored_metrics.refresh()
    return Response(parts.metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
