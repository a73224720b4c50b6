"""The open connections and their limits."""

import ipaddress
from collections import Counter, OrderedDict
from typing import Protocol, cast

from uvicorn.server import ServerState

from bonbon.settings import ServiceSettings
from service.metrics.process_metrics import Metrics

SPARE = 64
"""Connections beyond the limit that are accepted for `/health`, `/metrics`, `/admin` and `/console` only."""
SWEEP = 1.0
"""Seconds between checks of the deadlines."""
BODIES = 8
"""Maximum size of all incomplete requests together, as a multiple of the maximum body size."""


class Connection(Protocol):
    """The part of a connection that the limits use."""

    address: str
    spare: bool
    received: int

    def excuse(self, seconds: float) -> None:
        """Extends every deadline by `seconds`."""

    def check_deadlines(self, now: float) -> None:
        """Closes the connection if its client has exceeded a deadline; `now` is a time of the event loop's clock."""

    def give_up(self) -> None:
        """Closes the connection in favour of another one."""


class Connections(ServerState):
    """The state that uvicorn's server keeps of its connections, with limits.

    A connection waits for its client while it is idle or its request is incomplete. When the limit is reached, a new
    connection replaces the one that has waited longest, so a client that opens connections without completing a request
    cannot lock others out. If every connection is being answered, a few more are accepted for health checks and the
    operator.
    """

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        super().__init__()
        self.settings, self.metrics = settings, metrics
        self.max_open = settings.max_connections
        self.max_received = BODIES * settings.max_body_bytes
        self.received = 0
        self._admitted: set[Connection] = set()
        self._clients: Counter[str] = Counter()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._spare = 0
        self._swept: float | None = None

    @property
    def max_per_client(self) -> int:
        """Maximum number of connections of one client."""
        return self.settings.max_connections_per_client or max(1, self.max_open * 3 // 4)

    @property
    def open(self) -> int:
        """Number of admitted connections that are still open."""
        return len(self._admitted)

    def admit(self, new: Connection) -> bool:
        """Returns whether a new connection may stay. Another connection may be closed for it."""
        if self._clients[new.address] >= self.max_per_client:
            self._close_longest_waiting(new.address)
        if self.open >= self.max_open:
            self._close_longest_waiting()
        new.spare = self._clients[new.address] >= self.max_per_client or self.open >= self.max_open
        if new.spare and self._spare >= SPARE:
            self.metrics.connection_closed("refused")
            return False
        self._admitted.add(new)
        self._clients[new.address] += 1
        self._spare += new.spare
        self.waits(new)
        return True

    def forget(self, gone: Connection) -> None:
        """Removes a connection that is closed or about to be."""
        if gone not in self._admitted:
            return
        self._admitted.remove(gone)
        self._waiting.pop(gone, None)
        self._spare -= gone.spare
        self._clients[gone.address] -= 1
        if not self._clients[gone.address]:
            del self._clients[gone.address]

    def waits(self, connection: Connection) -> None:
        """Records that the connection now waits for its client."""
        if connection in self._admitted:
            self._waiting[connection] = None
            self._waiting.move_to_end(connection)

    def works(self, connection: Connection) -> None:
        """Records that the connection's request is complete."""
        self._waiting.pop(connection, None)

    def resize(self, difference: int) -> None:
        """Changes the size of all incomplete requests by `difference` bytes, and closes the largest ones above the
        limit."""
        self.received += difference
        while self.received > self.max_received:
            largest = max(self._waiting, key=lambda connection: connection.received, default=None)
            if largest is None or not largest.received:
                return
            self._close(largest)

    def sweep(self, now: float) -> None:
        """Closes the connections whose clients have exceeded a deadline; call it every SWEEP seconds.

        If it is called late, the service itself was blocked and could not read what clients had sent. That time does
        not count against the clients.

        Args:
            now: The time of the event loop's clock.
        """
        late = 0.0 if self._swept is None else now - self._swept - SWEEP
        self._swept = now
        for connection in cast("list[Connection]", list(self.connections)):
            if late > SWEEP:
                connection.excuse(late)
            connection.check_deadlines(now)

    def _close_longest_waiting(self, address: str | None = None) -> None:
        for connection in self._waiting:
            if address in (None, connection.address):
                return self._close(connection)
        return None

    def _close(self, connection: Connection) -> None:
        self.metrics.connection_closed("displaced")
        connection.give_up()


def client_of(host: str | None) -> str:
    """Returns what identifies a client: its IPv4 address, or the /64 network of its IPv6 address."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
