"""Turns a request into an HTTP response: a complete body, or a stream."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from time import perf_counter

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.answering import sse
from service.answering.answering import answer
from service.answering.completion_request import CompletionRequest
from service.answering.field_names import naming_fields
from service.answering.request_entry import let_in
from service.app_state import AppState, get_state
from service.auth.access import caller
from service.errors import Problem
from service.http_server.send_buffer import PIECE
from service.middleware.disconnect import unless_disconnected
from service.middleware.request_id import request_id
from service.rendering.renderer import Rendering
from service.routing.router import Route
from service.schemas.request_body import AnswerBody

Render = Callable[[CompletionRequest, Route], Rendering]


async def respond(request: Request, body: AnswerBody, render: Render) -> Response:
    """Answers `body` in the form that `render` returns. Generation is aborted if the client disconnects.

    Raises what `AnswerBody.completion_request` raises and, until the first byte is sent, what
    `service.answering.answer` raises.
    """
    state = get_state(request)
    limits = state.settings.service
    with naming_fields(body.field_names):
        completion_request = body.completion_request(
            default_max_tokens=limits.default_max_tokens,
            tenant=caller(request).tenant,
            request_id=request_id(request),
            headers=request.headers,
        )
    completion_request.limit(
        max_best_of=limits.max_best_of, max_prompts=limits.max_prompts, context_length=state.engine.context_length
    )
    if completion_request.store:
        state.pair_log.check()
    response: Response
    if body.stream:
        written, buffer = _Stream(state, completion_request, render), state.send_buffers.open()
        response = await sse.EventStream.open(written.write, written.failure, buffer, request.receive, state.cut_off)
    else:
        response = await unless_disconnected(request.receive, _whole(state, completion_request, render), state.cut_off)
    response.headers.update(state.limits.headers(completion_request.tenant))
    return response


async def _whole(state: AppState, completion_request: CompletionRequest, render: Render) -> Response:
    async with let_in(state, completion_request) as (route, charge):
        rendering = render(completion_request, route)
        async with aclosing(answer(state, completion_request, route, charge)) as events:
            async for item in events:
                if item is not None:
                    rendering.note(*item)
    if completion_request.prompt_logprobs:  # large to serialise
        return await asyncio.to_thread(lambda: JSONResponse(rendering.whole()))
    return JSONResponse(rendering.whole())


class _Stream:
    """Writes one streamed answer, and its last event if it fails."""

    def __init__(self, state: AppState, completion_request: CompletionRequest, render: Render) -> None:
        self._state, self._completion_request, self._render = state, completion_request, render
        self._rendering: Rendering | None = None

    async def write(self, put: Callable[[bytes], None]) -> None:
        """Passes the events to `put`, the first ones when every prompt has been read or after one ping interval.

        Admission and version are released when the last candidate is complete, whatever the client has read by then.
        """
        state, completion_request = self._state, self._completion_request
        start: float | None = perf_counter()
        tick = state.settings.service.ping_interval
        async with aclosing(state.router.admission(tick)) as ticks:
            async for _ in ticks:
                put(sse.comment("waiting for another version to load"))
        async with let_in(state, completion_request) as (route, charge):
            rendering = self._rendering = self._render(completion_request, route)
            live, begun = route.best_of == 1, False
            ping = sse.comment(f"generating {route.best_of} candidate{'' if live else 's'}")
            held = [] if live else [ping]
            async with aclosing(answer(state, completion_request, route, charge, live=live, tick=tick)) as events:
                async for item in events:
                    for piece in [ping] if item is None else rendering.events(*item):
                        if begun:
                            put(piece)
                        else:
                            held.append(piece)
                        if len(piece) > PIECE:
                            await asyncio.sleep(0)  # large to serialise, so let other tasks run
                    if not begun and (item is None or len(rendering.started) == len(completion_request.prompts)):
                        begun = True
                        put(b"".join(held))
                    if start is not None and rendering.has_text:
                        state.metrics.first_token(route, perf_counter() - start)
                        start = None
        put(rendering.end())

    def failure(self, problem: Problem) -> bytes:
        """Returns the last event of a stream that failed."""
        return sse.data(problem.envelope) if self._rendering is None else self._rendering.failure(problem)
