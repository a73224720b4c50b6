"""Translates exceptions into OpenAI's error envelope."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bonbon.errors import (
    BonbonError,
    ClientTooSlow,
    Conflict,
    EngineError,
    Overloaded,
    PromptTooLong,
    RateLimited,
    StoreError,
    UnknownVersion,
    UserError,
)

log = structlog.get_logger(__name__)

RETRY = {"retry-after": "1"}
BUSY = {"retry-after": "5"}
VALIDATION_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
MAX_MESSAGE_LENGTH = 1000
MAX_PARAM_LENGTH = 200
CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_content_encoding",
    503: "unavailable",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """The status, headers and error envelope of a failed request."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def envelope(self) -> dict[str, Any]:
        """The response body. Long messages and parameter names are shortened, because they may quote the request."""
        return {
            "error": {
                "message": _bounded(self.message, MAX_MESSAGE_LENGTH),
                "type": _type(self.status),
                "param": None if self.param is None else _bounded(self.param, MAX_PARAM_LENGTH),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.envelope, self.status, dict(self.headers))


def problem_of(error: Exception) -> Problem:
    """Returns the response for `error`. It reveals no internals of the service."""
    match error:
        case RequestValidationError():
            return _validation_problem(error.errors(), error.body)
        case StarletteHTTPException(status_code=400, __cause__=UnicodeDecodeError()):
            return Problem(400, "the body is not valid UTF-8: send JSON in UTF-8", code="invalid_json")
        case StarletteHTTPException(status_code=400, __cause__=RecursionError()):
            return Problem(400, "the body's JSON is nested too deeply", code="invalid_json")
        case StarletteHTTPException():
            status = error.status_code
            message = str(error.detail or HTTPStatus(status).phrase)
            return Problem(status, message, code=CODES.get(status), headers=error.headers or {})
        case UnknownVersion():
            return Problem(404, str(error), error.param or "model", "model_not_found")
        case PromptTooLong():
            return Problem(400, str(error), error.param, "context_length_exceeded")
        case UserError():
            return Problem(400, str(error), error.param, "invalid_value")
        case Conflict():
            return Problem(409, str(error), code="conflict")
        case RateLimited():
            return Problem(429, str(error), code="rate_limit_exceeded", headers=error.headers)
        case ClientTooSlow():
            return Problem(408, str(error), code="client_too_slow")
        case Overloaded():
            return Problem(503, str(error), code="overloaded", headers=BUSY)
        case EngineError():
            return Problem(503, str(error), code="unavailable", headers=RETRY)
        case StoreError() | SQLAlchemyError():
            # A message of the database may contain the content of a row.
            return Problem(
                503, "the answer cannot be logged at the moment; try again", code="unavailable", headers=RETRY
            )
        case ClientDisconnect():
            return Problem(499, "the client disconnected", code="disconnected")
    return Problem(
        500, "the service failed; its log contains the details under this x-request-id", code="internal_error"
    )


def report(error: Exception, problem: Problem) -> None:
    """Logs a failure of the service itself."""
    if problem.status == 500:
        log.error("unexpected failure", exc_info=error)
    elif problem.status > 500:
        log.warning("request failed", error=str(error))


def install(app: FastAPI) -> None:
    """Makes `app` answer every failure with an error envelope."""
    for kind in (RequestValidationError, StarletteHTTPException, BonbonError, SQLAlchemyError, ClientDisconnect):
        app.add_exception_handler(kind, _respond)
    app.add_middleware(UnexpectedErrors)


def unauthorized(message: str) -> HTTPException:
    """Returns the 401 for a missing or invalid key."""
    return HTTPException(401, message, {"www-authenticate": "Bearer"})


class UnexpectedErrors:
    """ASGI middleware that logs an exception that nothing else has handled and answers with a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if started:
                raise  # the status has been sent, so the server has to close the connection
            problem = problem_of(error)
            report(error, problem)
            await problem.response()(scope, receive, send)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if problem.status == 404 and "route" not in request.scope:
        problem = replace(problem, message=_no_route(request))
    if problem.status == 405:
        allowed = Headers(dict(problem.headers)).get("allow", "another method")
        problem = replace(problem, message=f"{request.url.path[:100]} does not take {request.method}: use {allowed}")
    report(error, problem)
    return problem.response()


def _no_route(request: Request) -> str:
    """Returns a message that lists the routes of the API, because most of these mistakes are in the base URL."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    known = [
        f"{method} {route.path_format}"
        for route in routes
        if route.path.startswith("/v1/")
        for method in sorted(route.methods)
    ]
    return (
        f"there is no route {request.method} {request.url.path[:100]}; the API has: {', '.join(known)}. "
        "/openapi.json describes all routes"
    )


def _validation_problem(errors: Sequence[Mapping[str, Any]], body: Any) -> Problem:
    first = errors[0]
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    if first["loc"] == ("body",) and isinstance(body, bytes | None):
        return Problem(400, "the body must be a JSON object, sent with content-type: application/json")
    place, *location = first["loc"]
    last = location.pop() if first["type"] == "missing" and place == "body" else None
    param = (_path(location, body, missing=last) if place == "body" else str(location[0])) or None
    code = VALIDATION_CODES.get(first["type"], "invalid_value")
    message = "unknown field" if code == "unknown_parameter" else first["msg"]
    return Problem(400, f"{param}: {message}" if param else message, param, code)


def _path(location: Sequence[str | int], body: Any, *, missing: str | int | None) -> str:
    """Converts pydantic's location into a path such as `messages[0].content`.

    Steps that the body lacks are left out, because they name a type. `missing` is a field that the body lacks there.
    """
    path, here = "", body
    for step in location:
        if isinstance(step, int) and isinstance(here, list):
            path += f"[{step}]"
            here = here[step] if step < len(here) else None
        elif isinstance(step, str) and isinstance(here, dict) and step in here:
            path += f".{step}" if path else step
            here = here[step]
    if missing is None:
        return path
    return f"{path}.{missing}" if path else str(missing)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _bounded(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
