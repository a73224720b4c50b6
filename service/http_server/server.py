"""uvicorn, run so that a failing start is an error message and a signal is an orderly end."""

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
from service.http_server.file_descriptors import make_room
from service.http_server.http_protocol import HttpProtocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TICKS_A_SECOND = 10
"""uvicorn's."""
SEND_BUFFER = 256 * 1024
"""Bytes that the kernel may keep for each connection; by itself it would keep megabytes of what nobody reads."""
GOODBYE = 3.0
"""Seconds to tell clients that they are cut off."""


class Server(uvicorn.Server):
    """A uvicorn server that calls `listening` once it takes connections and leaves signals to its owner.

    `connections` are checked for clients that exceed a deadline once a second.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self.server_state = self._connections = connections
        self._listening = listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # uvicorn would raise the signal again before the application has stopped

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
    """Start `app`, serve it until SIGINT or SIGTERM, drain, stop.

    The application starts before the server listens, so that what it raises reaches the caller. The first signal
    makes the service unready and lets requests in flight end. When they have had their time, or at a second signal,
    they are cut off: streams end with an error event, other requests are a 503. A third signal waits for nothing.
    Afterwards signals are handled as they were before.

    With a `backstop` the process ends `MARGIN` seconds after requests have had their time, or `GOODBYE` seconds after a
    third signal, if the stop has not come to its end before.

    Raises UserError when the engine, which could not be started at first, turns out never to start; see `Startup`.

    Args:
        drain_timeout: seconds that requests in flight have.
        ready: called with the service's URL once it answers.
        backstop: ends the process; None leaves it to the caller how long a stop takes.
    """
    connections: Connections = app.state.bonbon.connections
    connections.most = make_room(connections.most, SPARE)
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
        told_before = server.should_exit
        if cut_off.is_set() or not server.started:
            at_most(GOODBYE if told_before else MARGIN)
            serving.cancel()
        elif told_before:
            at_most(MARGIN)
            cut()
        else:
            at_most(drain_timeout + MARGIN)
            loop.call_later(drain_timeout, cut)
        server.should_exit = app.state.stopping = True

    def at_most(seconds: float) -> None:
        if backstop is not None:
            backstop.within(seconds)

    def cut() -> None:
        if not cut_off.is_set():
            cut_off.set()
            loop.call_later(GOODBYE, serving.cancel)

    given_up: list[UserError] = []

    def give_up(error: UserError) -> None:
        given_up.append(error)
        stop()

    app.state.bonbon.startup.give_up = give_up
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
    if given_up:
        raise given_up[0]


async def _serve(app: FastAPI, server: Server, listener: socket.socket) -> None:
    async with app.router.lifespan_context(app):
        await server.serve(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a taken port is known before a model is loaded.

    Raises UserError when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"cannot listen on {host!r}: {error.strerror}; give another --host", param="host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}; give another --port, or 0 for a free one", param="port"
        ) from error
    return listener


def _url_host(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
