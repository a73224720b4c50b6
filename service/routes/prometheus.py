"""`/metrics`: exposes metrics for Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from service.app_state import AppState, get_state

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(state: Annotated[AppState, Depends(get_state)]) -> Response:
    await state.stored_metrics.refresh()
    return Response(state.metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
