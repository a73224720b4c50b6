"""Which bodies an endpoint answers with, for the interface's documentation."""

from typing import Any

from pydantic import BaseModel

from service.schemas.replies import ErrorEnvelope

Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    status: {"model": ErrorEnvelope, "description": description}
    for status, description in {
        400: "A field is wrong, or not supported: `param` names it.",
        401: "The key is missing, wrong, revoked or expired.",
        403: "The key has not the scope.",
        404: "No such model is served, or there is no such group.",
        413: "The body is too large.",
        415: "The body is compressed.",
        429: "The tenant has asked for more than it may: `retry-after` says when to come back.",
        503: "There is no capacity, or the answer could not be drawn or logged; try again.",
    }.items()
}


def answers(whole: type[BaseModel], chunk: type[BaseModel], *, done: bool = True) -> Responses:
    """A 200 with a whole body, or with server-sent events of chunks, which `[DONE]` ends if `done`."""
    end = ", then `[DONE]`" if done else ""
    return {
        200: {
            "model": whole,
            "description": f"The whole answer, or with `stream` events of `{chunk.__name__}`{end}.",
            "content": {"text/event-stream": {"schema": _inlined(chunk)}},
        }
    }


def _inlined(model: type[BaseModel]) -> Any:
    """The schema without references: those of pydantic do not resolve inside an OpenAPI document."""
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
