"""`POST /v1/feedback`."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.app_state import get_state
from service.auth.access import caller
from service.schemas.feedback_body import FeedbackBody
from service.schemas.replies import FeedbackReply
from service.schemas.statuses import ERRORS

router = APIRouter(prefix="/v1", tags=["feedback"])


@router.post(
    "/feedback",
    response_class=Response,
    responses={200: {"model": FeedbackReply}, 400: ERRORS[400], 401: ERRORS[401], 403: ERRORS[403], 503: ERRORS[503]},
)
async def give_feedback(body: FeedbackBody, request: Request) -> Response:
    """Store a user's feedback on an answer with the answer's group."""
    feedback = body.record()
    await get_state(request).pair_log.append_feedback(feedback, tenant=caller(request).tenant)
    reply = FeedbackReply(group_id=feedback.group_id, created=int(feedback.time.timestamp()))
    return JSONResponse(reply.model_dump())
