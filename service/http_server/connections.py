"""The connections that are open, and how many may be."""

import ipaddress
from collections import Counter, OrderedDict
from typing import Protocol, cast

from uvicorn.server import ServerState

from bonbon.settings import ServiceSettings
from service.metrics.process_metrics import Metrics

SPARE = 64
"""Connections above the limit that are taken for `/health`, `/metrics`, `/admin` and `/console` alone."""
SWEEP = 1.0
"""Seconds between two looks at the deadlines."""
BODIES = 8
"""How many of the largest bodies fit into the memory of all requests that have not come whole."""


class Connection(Protocol):
    """What the limits need of a connection: whose it is, what it has received, and how it is closed."""

    address: str
    spare: bool
    received: int

    def excuse(self, seconds: float) -> None:
        """Extend every deadline by `seconds`."""

    def check_deadlines(self, now: float) -> None:
        """Close the connection when its client has exceeded a deadline; `now` is on the event loop's clock."""

    def give_up(self) -> None:
        """Close the connection for another one."""


class Connections(ServerState):
    """What uvicorn's server keeps of its connections, with limits.

    A connection waits while it is idle or its request has not come whole; then it is the client that must do
    something. Where there are too many connections, a new one takes the place of the one that has waited longest. So
    a client that opens connections and sends nothing whole shuts out nobody, itself included. Where every connection
    is being answered, a few more are taken, for health checks and the operator.
    """

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        super().__init__()
        self.settings, self.metrics = settings, metrics
        self.most = settings.max_connections
        self.most_received = BODIES * settings.max_body_bytes
        self.received = 0
        self._admitted: set[Connection] = set()
        self._clients: Counter[str] = Counter()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._spare = 0
        self._swept: float | None = None

    @property
    def most_of_one(self) -> int:
        """How many connections one client may have."""
        return self.settings.max_connections_per_client or max(1, self.most * 3 // 4)

    @property
    def open(self) -> int:
        """Connections that were admitted and are not closed."""
        return len(self._admitted)

    def admit(self, new: Connection) -> bool:
        """Whether a connection that was just made may stay; another one may have to go for it."""
        if self._clients[new.address] >= self.most_of_one:
            self._close_longest_waiting(new.address)
        if self.open >= self.most:
            self._close_longest_waiting()
        new.spare = self._clients[new.address] >= self.most_of_one or self.open >= self.most
        if new.spare and self._spare >= SPARE:
            self.metrics.connection_closed("refused")
            return False
        self._admitted.add(new)
        self._clients[new.address] += 1
        self._spare += new.spare
        self.waits(new)
        return True

    def forget(self, gone: Connection) -> None:
        """A connection is closed, or about to be."""
        if gone not in self._admitted:
            return
        self._admitted.remove(gone)
        self._waiting.pop(gone, None)
        self._spare -= gone.spare
        self._clients[gone.address] -= 1
        if not self._clients[gone.address]:
            del self._clients[gone.address]

    def waits(self, connection: Connection) -> None:
        """From now on a connection waits for its client."""
        if connection in self._admitted:
            self._waiting[connection] = None
            self._waiting.move_to_end(connection)

    def works(self, connection: Connection) -> None:
        """A connection's request is whole."""
        self._waiting.pop(connection, None)

    def resize(self, difference: int) -> None:
        """Requests that are not whole take so many bytes more, or less."""
        self.received += difference
        while self.received > self.most_received:
            largest = max(self._waiting, key=lambda connection: connection.received, default=None)
            if largest is None or not largest.received:
                return
            self._close(largest)

    def sweep(self, now: float) -> None:
        """Close the connections whose clients have exceeded a deadline; to be called every SWEEP seconds.

        When it is called late, the service itself stood still and has not read what clients have sent: then the time
        is not held against them.

        Args:
            now: on the event loop's clock.
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
    """Whose connection it is: an IPv4 address, or the network of an IPv6 address, of which one client has many."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
