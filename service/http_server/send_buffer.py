"""What streams have ready and their clients have not read yet, in bounded memory."""

import asyncio
from collections import deque

import structlog

from bonbon.errors import ClientTooSlow

log = structlog.get_logger(__name__)

PIECE = 64 * 1024
"""Bytes that are sent at a time, when that many are there; a single event may be longer."""


class SendBuffers:
    """The buffers of all streams, which together hold at most `most_bytes`.

    Who fills a buffer never waits for the client, so a client that reads slowly holds up nothing but itself. When more
    is ready than may be kept, the stream that keeps most is cut off.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._open: set[SendBuffer] = set()

    def open(self) -> "SendBuffer":
        """A buffer for one stream; to be closed."""
        buffer = SendBuffer(self)
        self._open.add(buffer)
        return buffer

    def resize(self, difference: int) -> None:
        """A buffer keeps so many bytes more, or less."""
        self.bytes += difference
        while self.bytes > self.most_bytes:
            max(self._open, key=lambda buffer: buffer.bytes).cut_off()

    def forget(self, buffer: "SendBuffer") -> None:
        """A buffer is closed."""
        self._open.discard(buffer)


class SendBuffer:
    """One stream: `put` fills it until `end`, `take` empties it."""

    def __init__(self, buffers: SendBuffers) -> None:
        self.bytes = 0
        self._buffers = buffers
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = self._cut_off = False

    def put(self, data: bytes) -> None:
        """Keep `data` until it is taken. Raises ClientTooSlow when the stream was cut off."""
        if not self._cut_off and data:
            self._pieces.append(data)
            self._resize(len(data))
            self._changed.set()
        if self._cut_off:
            raise self._refusal()

    def end(self) -> None:
        """Nothing more will be put."""
        self._ended = True
        self._changed.set()

    async def ready(self) -> bool:
        """Wait until there is something to take; False when nothing more will come. Raises ClientTooSlow."""
        while not (self._pieces or self._ended or self._cut_off):
            self._changed.clear()
            await self._changed.wait()
        if self._cut_off:
            raise self._refusal()
        return bool(self._pieces)

    async def take(self) -> bytes:
        """What comes next, in order: up to PIECE bytes, or one longer event. Empty at the end. Raises ClientTooSlow."""
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
        """Give up what is there; who puts and who takes is told."""
        log.warning("a stream is cut off: its client reads too slowly", bytes=self.bytes)
        self._cut_off = True
        self._drop()
        self._changed.set()

    def close(self) -> None:
        """The stream is over, however far it came."""
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
        return ClientTooSlow("the client reads too slowly: too much of the answer was waiting for it")
