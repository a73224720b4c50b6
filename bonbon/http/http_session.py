"""HTTP sessions with pooled connections, and reading of bounded answers."""

import socket
from collections.abc import Callable
from contextlib import closing

import aiohttp

# Shorter than servers keep idle connections (5 s), so that no request uses a connection that is about to close.
KEEP_ALIVE = 2.0


class TooLong(Exception):
    """Raised when an answer exceeds the size limit."""


def open_session(
    *,
    bearer: str | None,
    connections: int,
    connect_timeout: float | None = None,
    proxies: bool = False,
    refuse: Callable[[str], None] | None = None,
) -> aiohttp.ClientSession:
    """Returns a session for JSON without cookies. It has no time limit other than `connect_timeout`.

    Args:
        bearer: The peer's API key, if it needs one.
        connections: The maximum number of concurrent connections to each peer.
        connect_timeout: The seconds that connecting may take.
        proxies: Whether to use the proxies that the environment names.
        refuse: Raises OSError for a forbidden address; called for each connection, because a name may resolve to a new
            one.
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


async def read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Returns the body, after which the connection is free again. Raises TooLong when it exceeds `limit` bytes."""
    content = bytearray()
    with closing(response):
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > limit:
                raise TooLong
    return bytes(content)
