"""Writes answers in the format of the Responses API."""

import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from bonbon.best_of_n import Answer
from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta, Started
from service.answering import sse
from service.answering.answering import Event
from service.answering.completion_request import CompletionRequest
from service.errors import Problem
from service.rendering.output import ItemEvent, Output, Status
from service.rendering.renderer import Rendering
from service.routing.router import Route

CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""Error codes of failed responses by the status that they would have had; all others are server_error."""


class ResponseRendering(Rendering):
    """The answer of POST /v1/responses: one prompt and one choice.

    Args:
        echo: The fields of the request that the response repeats.
        parallel: Whether more than one tool call is allowed.
    """

    prefix = "resp_"

    def __init__(
        self,
        completion_request: CompletionRequest,
        route: Route,
        *,
        echo: Mapping[str, Any],
        parallel: bool,
        **options: bool,
    ) -> None:
        super().__init__(completion_request, route, **options)
        self.echo = echo
        self._output = Output(parallel=parallel, logprobs=self.logprobs)
        self._numbers = count()
        self._begun = False

    def whole(self) -> dict[str, Any]:
        draw = self._draw
        for _ in self._output.grow(draw):
            pass
        status = _status(draw)
        for _ in self._output.end(status):
            pass
        return self._response(status)

    def events(self, prompt: int, event: Event) -> Iterator[bytes]:
        return map(self._numbered, self._events(prompt, event))

    def end(self) -> bytes:
        return b""

    def failure(self, problem: Problem) -> bytes:
        envelope = problem.envelope["error"]
        error = {"code": CODES.get(problem.status, "server_error"), "message": envelope["message"]}
        failed = self._response("incomplete") | {"status": "failed", "error": error, "incomplete_details": None}
        events = [*self._opening(), {"type": "response.failed", "response": failed}]
        return b"".join(map(self._numbered, events))

    def _events(self, prompt: int, event: Event) -> Iterator[ItemEvent]:
        self.note(prompt, event)
        if isinstance(event, Started):
            yield from self._opening()
        elif isinstance(event, Answer):
            draw = self._draw
            if self.route.best_of > 1:
                yield from self._output.grow(draw)
            status = _status(draw)
            yield from self._output.end(status)
            self.has_text = True
            yield {"type": f"response.{status}", "response": self._response(status)}
        elif isinstance(event, Delta) and self.route.best_of == 1:
            for grown in self._output.grow(event):
                self.has_text = True
                yield grown

    def _opening(self) -> Iterator[ItemEvent]:
        if not self._begun:
            self._begun = True
            for kind in ("response.created", "response.in_progress"):
                yield {"type": kind, "response": self._response("in_progress")}

    def _numbered(self, event: ItemEvent) -> bytes:
        return sse.named(event | {"sequence_number": next(self._numbers)})

    @property
    def _draw(self) -> Draw:
        ((_, _, draw),) = self._served(0)
        return draw

    def _response(self, status: Status) -> dict[str, Any]:
        answered = bool(self.answers)
        response = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.route.model,
            "output": [] if status == "in_progress" else self._output.to_list(status),
            "usage": self._usage() if answered else None,
            "background": False,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            **self.echo,
        }
        return response | ({"bonbon": self._extension()} if answered else {})

    def _usage(self) -> dict[str, Any]:
        read, written = self.tokens_read, self.tokens_written
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }


def _status(draw: Draw) -> Status:
    return "incomplete" if draw.finish_reason == "length" else "completed"
