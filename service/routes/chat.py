"""`POST /v1/chat/completions`."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.access import caller
from service.parts import get_parts
from service.rendering.chat import ChatRendering
from service.request_id import request_id
from service.responding import respond
from service.schemas.chat import ChatBody
from service.schemas.replies import ChatChunk, ChatCompletion
from service.schemas.statuses import ERRORS, answers

router = APIRouter(prefix="/v1", tags=["openai"])
RESPONSES: dict[int | str, dict[str, Any]] = answers(ChatCompletion, ChatChunk) | ERRORS


@router.post("/chat/completions", response_class=Response, responses=RESPONSES)
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """Answer a chat with the best of the candidates drawn, or the n best."""
    parts = get_parts(request)
    ask = body.ask(
        default_max_tokens=parts.settings.service.default_max_tokens,
        tenant=caller(request).tenant,
        request_id=request_id(request),
        headers=request.headers,
    )
    return await respond(
        request,
        parts,
        ask,
        lambda plan: ChatRendering(
            ask,
            plan,
            parallel=body.parallel_tool_calls is not False,
            logprobs=bool(body.logprobs),
            candidates=body.bonbon.candidates,
            include_usage=body.include_usage,
        ),
        stream=bool(body.stream),
    )
