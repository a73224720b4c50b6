"""A real HTTP server on a free loopback port whose answers a test writes."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Response | Callable[[dict[str, Any]], Response]


@dataclass
class Slow:
    """An answer after a while."""

    seconds: float
    answer: Answer


@dataclass
class Server:
    """Gives `answers` in order, then the last one for ever; keeps every request's JSON and headers."""

    url: str = ""
    answers: list[Answer | Slow] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def root(self) -> str:
        """The URL without its path."""
        return self.url.removesuffix("/score")

    async def answer(self, request: Request) -> Response:
        body = json.loads(await request.body() or b"{}")
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.url.path)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Slow):
            await asyncio.sleep(answer.seconds)
            answer = answer.answer
        return answer if isinstance(answer, Response) else answer(body)


@contextmanager
def serving(*answers: Answer | Slow) -> Iterator[Server]:
    state = Server(answers=list(answers))
    app = Starlette(routes=[Route("/{path:path}", state.answer, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        threading.Event().wait(0.005)
    state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/score"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join()


def lengths(body: dict[str, Any]) -> Response:
    """Scores by length, the way the contract asks for it."""
    return JSONResponse({"scores": [len(text) for text in body["completions"]], "version": "v7"})
