"""`POST /v1/chat/completions`."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.rendering.chat_rendering import ChatRendering
from service.routes.respond import respond
from service.schemas.chat_body import ChatBody
from service.schemas.replies import ChatChunk, ChatCompletion
from service.schemas.statuses import ERRORS, answers

router = APIRouter(prefix="/v1", tags=["openai"])
RESPONSES: dict[int | str, dict[str, Any]] = answers(ChatCompletion, ChatChunk) | ERRORS


@router.post("/chat/completions", response_class=Response, responses=RESPONSES)
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """Answer a chat with the best of the sampled candidates, or with the n best."""
    return await respond(
        request,
        body,
        lambda completion_request, route: ChatRendering(
            completion_request,
            route,
            parallel=body.parallel_tool_calls is not False,
            logprobs=bool(body.logprobs),
            candidates=body.bonbon.candidates,
            include_usage=body.include_usage,
        ),
    )
