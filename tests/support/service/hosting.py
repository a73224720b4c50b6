"""Starts the service's application for tests: in this process without a socket, or behind a real server."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

import httpx2
import uvicorn
from fastapi import FastAPI


@asynccontextmanager
async def in_process(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """Starts the application, yields a client that calls it directly, and stops it in order."""
    async with app.router.lifespan_context(app), client_in_process(app) as client:
        yield client


def client_in_process(
    app: FastAPI, *, host: str = "127.0.0.1", base_url: str = "http://127.0.0.1"
) -> httpx2.AsyncClient:
    """Returns a client that calls the application directly, as if it were on the machine `host`."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app, client=(host, 50000)), base_url=base_url)


@asynccontextmanager
async def served_on_this_loop(app: FastAPI) -> AsyncIterator[str]:
    """Yields the URL of a real server on this event loop, which an engine that is already started needs."""
    server = _server(app)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server did not start"
        await asyncio.sleep(0.01)
    try:
        yield _url(server)
    finally:
        server.should_exit = True
        await serving


@contextmanager
def served_in_a_thread(app: FastAPI) -> Iterator[str]:
    """Yields the URL of a real server in a separate thread, for clients that block."""
    server = _server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        threading.Event().wait(0.005)
    try:
        yield _url(server)
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leaves pytest's own handlers in place."""
        return nullcontext()


def _server(app: FastAPI) -> uvicorn.Server:
    return _Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))


def _url(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
