"""uvicorn's HTTP protocol, with deadlines for clients and limits on what they may send."""

import asyncio
import json
import socket
import struct
from enum import Enum
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import Problem
from service.http_server.connections import Connections, client_of
from service.http_server.http_parser import HttpParser

SLICE = 16 * 1024
"""Bytes to parse at a time, so that an exceeded limit is noticed early."""
FRAMING = 8
"""Maximum ratio of received bytes to body bytes. A chunked body with chunks of one byte has a ratio of six."""

BYTES_ACKED = 120
"""Offset of tcpi_bytes_acked in Linux's struct tcp_info."""


class Reading(Enum):
    """What the client has to send next: a new request, the rest of the headers, or the rest of the body."""

    REQUEST = "request"
    HEAD = "head"
    BODY = "body"


class HttpProtocol(HttpToolsProtocol):
    """One connection of a server whose state is `Connections`.

    Attributes:
        address: Identifies the client.
        spare: Whether the connection is beyond the limit.
        received: Bytes that the service holds of an incomplete request.
    """

    parser: HttpParser  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = HttpParser(self)
        assert isinstance(server_state, Connections)
        self.guard = server_state
        self.address, self.spare, self.received = "", False, 0
        self._reading, self._since = Reading.HEAD, self.loop.time()
        self._raw = self._payload = 0
        self._taken, self._taken_at = 0, self._since
        self._answered: RequestResponseCycle | None = None

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = client_of(self.client[0] if self.client else None)
        if not self.guard.admit(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep(0)
        self.guard.forget(self)
        self.parser.close()
        self.pipeline.clear()
        if self._answered is not None:
            self._answered.disconnected = True  # uvicorn notifies only the request that arrived last
            self._answered.message_event.set()
            self._answered = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE):
            if not self.transport.is_closing():
                self._parse(data[start : start + SLICE])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    # the parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["spare"] = self.spare
        self._read_on(Reading.HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not Reading.BODY:  # trailers of a chunked body are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._read_on(Reading.BODY)
        super().on_headers_complete()
        if self.spare:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._payload += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._read_on(Reading.REQUEST)

    # uvicorn's callbacks

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._reading is Reading.REQUEST and not self._answering:
            self.guard.waits(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_request", msg)

    def shutdown(self) -> None:
        if self._reading is Reading.BODY and not self.pipeline:
            self.give_up()  # uvicorn would wait for it as if it were being answered
        else:
            super().shutdown()

    # called by the guard

    def check_deadlines(self, now: float) -> None:
        """Closes the connection if its client has taken too long to send a request or to read the answer."""
        settings = self.guard.settings
        if self._stalled(now) > settings.send_timeout:
            self.guard.metrics.connection_closed("send_timeout")
            self.give_up()
        elif self.transport.is_closing():
            return  # the last data is still being sent
        elif self.flow.read_paused or (self._reading is Reading.HEAD and self._answering):
            self._since = now  # the connection is not waiting for its client
        elif self._reading is Reading.HEAD and now - self._since > settings.header_timeout:
            # A connection without any request is closed without a response.
            self._refuse(
                408, "header_timeout", "the request line and headers did not arrive in time", silent=not self.received
            )
        elif self._reading is Reading.BODY and now - self._since > settings.body_timeout:
            self._refuse(408, "body_timeout", "the request body did not arrive in time")

    def excuse(self, seconds: float) -> None:
        """Extends every deadline of the client by `seconds`."""
        self._since += seconds
        self._taken_at += seconds

    def give_up(self) -> None:
        """Closes the connection at once, without a response."""
        if self._answering:
            self.cycle.body.clear()
        self._keep(0)
        self.guard.forget(self)
        self.transport.abort()

    @property
    def _answering(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _parse(self, data: bytes) -> None:
        before = self._reading
        super().data_received(data)
        if self._reading is Reading.REQUEST or self.transport.is_closing():
            return
        if self._reading is before:
            self._raw += len(data)
        answered = self._reading is Reading.BODY and self.cycle.response_complete  # further data is discarded
        self._keep(0 if answered else self._raw)
        settings = self.guard.settings
        if self._reading is Reading.HEAD and self._raw > settings.max_header_bytes:
            self._refuse(
                431,
                "header_too_large",
                f"the request line and headers are larger than {settings.max_header_bytes} bytes",
            )
        elif self._raw > settings.max_header_bytes + FRAMING * min(self._payload, settings.max_body_bytes):
            self._refuse(413, "request_too_large", "the request body takes too many bytes")

    def _read_on(self, what: Reading) -> None:
        self._reading, self._since = what, self.loop.time()
        self._raw = self._payload = 0
        self._keep(0)
        if what is Reading.REQUEST and self._answering:
            self.guard.works(self)
        elif what is not Reading.HEAD or not self._answering:
            self.guard.waits(self)

    def _keep(self, received: int) -> None:
        difference, self.received = received - self.received, received
        self.guard.resize(difference)

    def _stalled(self, now: float) -> float:
        """Seconds since the client last read some of the data that is ready for it."""
        taken = _acknowledged(self.transport)
        if taken != self._taken or not self.transport.get_write_buffer_size():
            self._taken, self._taken_at = taken, now
        return now - self._taken_at

    def _refuse(self, status: int, code: str, message: str, *, silent: bool = False) -> None:
        self.guard.metrics.connection_closed(code)
        if self._answering:
            if self.pipeline or self.cycle.response_started:
                self.give_up()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not silent:
            body = json.dumps(Problem(status, message, code=code).envelope).encode()
            head = (b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close")
            self.transport.write(STATUS_LINE[status] + b"\r\n".join((*head, b"", body)))
        self._keep(0)
        self.guard.forget(self)
        self.transport.close()


def _acknowledged(transport: asyncio.Transport) -> int:
    """Returns how many bytes the client has acknowledged. Bytes that have left our buffers may still be in the
    kernel's."""
    if not hasattr(socket, "TCP_INFO"):
        return -transport.get_write_buffer_size()
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:  # it is closed
        return 0
    (acknowledged,) = struct.unpack_from("Q", info, BYTES_ACKED)
    return int(acknowledged)
