"""Clients that speak HTTP badly: by the byte, on sockets of their own."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


def request(path: str, body: dict[str, Any] | None = None, *headers: str) -> bytes:
    """A whole request: a POST of `body`, a GET without one."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: 127.0.0.1", *headers]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


def unread_socket(port: int, *, receive_buffer: int = 4096) -> socket.socket:
    """A connected socket that takes in next to nothing unless somebody reads it."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.connect(("127.0.0.1", port))
    return opened


@asynccontextmanager
async def connections(port: int, count: int, sent: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """So many connections, on each of which the same was sent; open until the block ends or the service closes them."""
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
    """All that comes until the service closes the connection; empty when it does so without a word."""
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
