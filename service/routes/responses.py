"""`POST /v1/responses`. Responses are not stored, so `/v1/responses/{id}` always answers a 404."""

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from service.rendering.response_rendering import ResponseRendering
from service.routes.respond import respond
from service.schemas.responses_api.response_body import ResponseBody
from service.schemas.responses_api.response_replies import ResponseEvent, ResponseReply
from service.schemas.statuses import ERRORS, answers

router = APIRouter(prefix="/v1", tags=["openai"])
RESPONSES: dict[int | str, dict[str, Any]] = answers(ResponseReply, ResponseEvent, done=False) | ERRORS


@router.post("/responses", response_class=Response, responses=RESPONSES)
async def create_response(body: ResponseBody, request: Request) -> Response:
    """Answer a message or a conversation with the best of the sampled candidates."""
    return await respond(
        request,
        body,
        lambda completion_request, route: ResponseRendering(
            completion_request,
            route,
            echo=body.echo,
            parallel=body.parallel_tool_calls is not False,
            logprobs=body.wants_logprobs,
            candidates=body.bonbon.candidates,
        ),
    )


@router.api_route("/responses/{response_id}", methods=["GET", "DELETE"], include_in_schema=False)
@router.api_route("/responses/{response_id}/cancel", methods=["POST"], include_in_schema=False)
@router.api_route("/responses/{response_id}/input_items", methods=["GET"], include_in_schema=False)
async def refuse_stored_response(response_id: str) -> None:
    """Explain that responses are not stored."""
    raise HTTPException(
        404,
        f"responses are not stored, so there is no {response_id[:80]!r}: keep the answer of POST /v1/responses, and "
        "send the whole conversation as input",
    )


@router.post("/responses/{operation}", include_in_schema=False)
async def refuse_operation(operation: str) -> None:
    """Name the alternatives to `input_tokens` and `compact`."""
    raise HTTPException(
        404,
        f"POST /v1/responses/{operation[:80]} is not supported: use POST /v1/responses for answers, and POST /tokenize "
        "to count the tokens of a chat",
    )
