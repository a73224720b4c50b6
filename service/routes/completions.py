"""`POST /v1/completions`."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.rendering.completion_rendering import CompletionRendering
from service.routes.respond import respond
from service.schemas.completion_body import CompletionBody
from service.schemas.replies import Completion, CompletionChunk
from service.schemas.statuses import ERRORS, answers

router = APIRouter(prefix="/v1", tags=["openai"])
RESPONSES: dict[int | str, dict[str, Any]] = answers(Completion, CompletionChunk) | ERRORS


@router.post("/completions", response_class=Response, responses=RESPONSES)
async def create_completion(body: CompletionBody, request: Request) -> Response:
    """Complete each prompt with the best of the sampled candidates, or with the n best."""
    return await respond(
        request,
        body,
        lambda completion_request, route: CompletionRendering(
            completion_request,
            route,
            echo=bool(body.echo),
            logprobs=body.logprobs is not None,
            candidates=body.bonbon.candidates,
            include_usage=body.include_usage,
        ),
    )
