"""HTTP to a peer: pooled, and bounded."""

import socket
from collections.abc import Callable
from contextlib import closing

import aiohttp

# Shorter than a server keeps an idle connection (5 s), so that none is used just as it closes.
KEEP_ALIVE = 2.0


class TooLong(Exception):
    """The answer is longer than was allowed."""


def open_session(
    *,
    bearer: str | None,
    connections: int,
    connect_timeout: float | None = None,
    proxies: bool = False,
    refuse: Callable[[str], None] | None = None,
) -> aiohttp.ClientSession:
    """A session for JSON that stores no cookies. Only `connect_timeout` limits how long anything takes.

    Args:
        bearer: the key that the peer wants, if any.
        connections: most at once to each peer.
        connect_timeout: seconds.
        proxies: go through those that the environment names.
        refuse: raises OSError for an address that must not be connected to; asked for each connection, whatever a name
            meant before.
    """

    def make_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, (host, *_) = address
        if refuse is not None:
            refuse(str(host))
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE, socket_factory=make_socket),
        headers={"accept-encoding": "identity", "content-type": "application/json"}
        | ({"authorization": f"Bearer {bearer}"} if bearer else {}),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=proxies,
    )


async def read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, of at most `most` bytes; then the connection may be used again. Raises TooLong."""
    content = bytearray()
    with closing(response):
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > most:
                raise TooLong
    return bytes(content)
