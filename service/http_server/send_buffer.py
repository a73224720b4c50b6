"""Buffers streamed data that clients have not read yet, in bounded memory."""

import asyncio
from collections import deque

import structlog

from bonbon.errors import ClientTooSlow

log = structlog.get_logger(__name__)

PIECE = 64 * 1024
"""Bytes to send at a time, if that many are ready; a single event may be longer."""


class SendBuffers:
    """The buffers of all streams, with a limit on their total size.

    Whoever fills a buffer never waits for the client, so a slow client delays only itself. When the total exceeds
    `max_bytes`, the stream with the largest buffer is cut off.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._open: set[SendBuffer] = set()

    def open(self) -> "SendBuffer":
        """Returns a buffer for one stream. The caller closes it."""
        buffer = SendBuffer(self)
        self._open.add(buffer)
        return buffer

    def resize(self, difference: int) -> None:
        """Changes the total size by `difference` bytes."""
        self.bytes += difference
        while self.bytes > self.max_bytes:
            max(self._open, key=lambda buffer: buffer.bytes).cut_off()

    def forget(self, buffer: "SendBuffer") -> None:
        """Removes a closed buffer."""
        self._open.discard(buffer)


class SendBuffer:
    """The buffer of one stream: `put` fills it until `end` is called, and `take` empties it."""

    def __init__(self, buffers: SendBuffers) -> None:
        self.bytes = 0
        self._buffers = buffers
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = self._cut_off = False

    def put(self, data: bytes) -> None:
        """Appends `data`.

        Raises:
            ClientTooSlow: The stream was cut off.
        """
        if not self._cut_off and data:
            self._pieces.append(data)
            self._resize(len(data))
            self._changed.set()
        if self._cut_off:
            raise self._refusal()

    def end(self) -> None:
        """Marks the end of the data."""
        self._ended = True
        self._changed.set()

    async def ready(self) -> bool:
        """Waits until there is data to take; returns False at the end.

        Raises:
            ClientTooSlow: The stream was cut off.
        """
        while not (self._pieces or self._ended or self._cut_off):
            self._changed.clear()
            await self._changed.wait()
        if self._cut_off:
            raise self._refusal()
        return bool(self._pieces)

    async def take(self) -> bytes:
        """Returns the next data in order: up to PIECE bytes, or one longer event. Returns no bytes at the end.

        Raises:
            ClientTooSlow: The stream was cut off.
        """
        if not await self.ready():
            return b""
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while self._pieces and size + len(self._pieces[0]) <= PIECE:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        self._resize(-size)
        return b"".join(taken)

    def cut_off(self) -> None:
        """Discards the data; `put`, `ready` and `take` raise ClientTooSlow from then on."""
        log.warning("stream cut off because its client reads too slowly", bytes=self.bytes)
        self._cut_off = True
        self._drop()
        self._changed.set()

    def close(self) -> None:
        """Releases the buffer, whether or not the stream is complete."""
        self._drop()
        self._buffers.forget(self)

    def _drop(self) -> None:
        self._pieces.clear()
        self._resize(-self.bytes)

    def _resize(self, difference: int) -> None:
        self.bytes += difference
        self._buffers.resize(difference)

    @staticmethod
    def _refusal() -> ClientTooSlow:
        return ClientTooSlow("the client reads too slowly: too much of the answer is buffered")
