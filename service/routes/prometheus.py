"""`/metrics`: exposes metrics for Prometheus."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from service.app_state import CurrentState

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(state: CurrentState) -> Response:
    await state.stored_metrics.refresh()
    return Response(state.metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
