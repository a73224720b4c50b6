"""Clients that use HTTP in unusual ways, byte by byte, on their own sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


def request(path: str, body: dict[str, Any] | None = None, *headers: str) -> bytes:
    """Returns a complete request: a POST of `body`, or a GET without one."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: 127.0.0.1", *headers]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


def unread_socket(port: int, *, receive_buffer: int = 4096) -> socket.socket:
    """Returns a connected socket with a receive buffer so small that the sender blocks unless the test reads."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.connect(("127.0.0.1", port))
    return opened


@asynccontextmanager
async def connections(port: int, count: int, sent: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Opens `count` connections and sends the same bytes on each; they stay open until the block or the service ends
    them.
    """
    opened = []
    for start in range(0, count, 100):
        some = range(start, min(start + 100, count))
        opened += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in some))
    try:
        for _, writer in opened:
            writer.write(sent)
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Returns everything received until the service closes the connection."""
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
