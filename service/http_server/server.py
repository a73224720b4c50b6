"""Runs uvicorn so that a failed start is reported as an error message and a signal leads to an orderly shutdown."""

import asyncio
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from bonbon.errors import UserError
from service.http_server.connections import SPARE, SWEEP, Connections
from service.http_server.exit_deadline import MARGIN, Backstop
from service.http_server.file_descriptors import raise_file_limit
from service.http_server.http_protocol import HttpProtocol
from service.lifecycle.startup import Startup

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TICKS_A_SECOND = 10
"""How often uvicorn calls `on_tick`."""
SEND_BUFFER = 256 * 1024
"""Bytes that the kernel may buffer for each connection; by default it would buffer megabytes of unread data."""
GOODBYE = 3.0
"""Seconds in which clients are notified that their requests are cut off."""


class Server(uvicorn.Server):
    """A uvicorn server that calls `listening` when it accepts connections and leaves signals to its owner.

    Once a second it checks `connections` for clients that have exceeded a deadline.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self.server_state = self._connections = connections
        self._listening = listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # uvicorn would re-raise the signal before the application has stopped

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def on_tick(self, counter: int) -> bool:
        if counter % int(SWEEP * TICKS_A_SECOND) == 0:
            self._connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)


async def run_server(
    app: FastAPI,
    *,
    host: str,
    port: int,
    drain_timeout: float,
    ready: Callable[[str], None],
    backstop: Backstop | None = None,
) -> None:
    """Starts `app`, serves it until SIGINT or SIGTERM, lets running requests finish, and stops it.

    The application starts before the server listens, so its exceptions reach the caller. The first signal makes the
    service unready and lets running requests finish. After `drain_timeout`, or at a second signal, they are cut off:
    streams end with an error event, and other requests get a 503. After a third signal the server waits for nothing.
    Finally the former signal handlers are restored.

    With a `backstop` the process ends `MARGIN` seconds after the requests' time is over, or `GOODBYE` seconds after a
    third signal, even if the shutdown is not complete.

    Raises UserError when a later try shows that the engine can never start; see `Startup`.

    Args:
        drain_timeout: Seconds that running requests have to finish.
        ready: Called with the service's URL when the service answers.
        backstop: Ends the process at the deadline. With None, a shutdown has no deadline.
    """
    connections: Connections = app.state.bonbon.connections
    connections.max_open = raise_file_limit(connections.max_open, SPARE)
    listener = bind(host, port)
    url = f"http://{_url_host(host)}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=math.ceil(drain_timeout + GOODBYE),
        server_header=False,
    )
    server = Server(config, connections, lambda: ready(url))
    serving = asyncio.create_task(_serve(app, server, listener))

    loop = asyncio.get_running_loop()
    cut_off: asyncio.Event = app.state.bonbon.cut_off

    def stop() -> None:
        already_stopping = server.should_exit
        if cut_off.is_set() or not server.started:
            exit_within(GOODBYE if already_stopping else MARGIN)
            serving.cancel()
        elif already_stopping:
            exit_within(MARGIN)
            cut()
        else:
            exit_within(drain_timeout + MARGIN)
            loop.call_later(drain_timeout, cut)
        server.should_exit = app.state.stopping = True

    def exit_within(seconds: float) -> None:
        if backstop is not None:
            backstop.within(seconds)

    def cut() -> None:
        if not cut_off.is_set():
            cut_off.set()
            loop.call_later(GOODBYE, serving.cancel)

    startup: Startup = app.state.bonbon.startup
    startup.give_up = stop
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await serving
    except asyncio.CancelledError:
        if not server.should_exit:
            raise
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        listener.close()
    if startup.fatal is not None:
        raise startup.fatal


async def _serve(app: FastAPI, server: Server, listener: socket.socket) -> None:
    async with app.router.lifespan_context(app):
        await server.serve(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Returns a bound socket that does not listen yet, so that a port in use is reported before a model is loaded.

    Raises:
        UserError: The address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"cannot listen on {host!r}: {error.strerror}; choose another --host", param="host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or 0 for a free port",
            param="port",
        ) from error
    return listener


def _url_host(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
