"""Describes the possible responses of each endpoint for the OpenAPI document."""

from typing import Any

from pydantic import BaseModel

from service.schemas.replies import ErrorEnvelope

Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    status: {"model": ErrorEnvelope, "description": description}
    for status, description in {
        400: "A field is invalid or not supported; `param` names it.",
        401: "The key is missing, invalid, revoked or expired.",
        403: "The key lacks the required scope.",
        404: "The model is not served, or the group does not exist.",
        413: "The body is too large.",
        415: "The body is compressed.",
        429: "The tenant exceeds a rate limit; `retry-after` is the number of seconds to wait.",
        503: "The service is at capacity, or the answer could not be generated or logged; try again.",
    }.items()
}


def answers(whole: type[BaseModel], chunk: type[BaseModel], *, done: bool = True) -> Responses:
    """Describes a 200 with a complete body, or with server-sent events, which end with `[DONE]` if `done`."""
    end = ", then `[DONE]`" if done else ""
    return {
        200: {
            "model": whole,
            "description": f"The complete answer or, with `stream`, events of `{chunk.__name__}`{end}.",
            "content": {"text/event-stream": {"schema": _inlined(chunk)}},
        }
    }


def _inlined(model: type[BaseModel]) -> Any:
    """Returns the schema with its references inlined, because pydantic's do not resolve inside an OpenAPI document."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"].rpartition("/")[2]])
        return {key: inline(entry) for key, entry in node.items()}

    return inline(schema)
