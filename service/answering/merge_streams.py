"""Merges several streams of events."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from bonbon.concurrency.shielded import end

T = TypeVar("T")


async def merge(
    sources: Sequence[AsyncGenerator[T]], tick: float | None = None
) -> AsyncGenerator[tuple[int, T] | None]:
    """Yields each event with the index of its source as it arrives, and None whenever `tick` seconds pass without one.

    A task of its own reads each source to its end, however slowly the events are consumed. The first failure ends
    everything. When the generator is closed, every source has been closed.
    """
    items: deque[tuple[int, T] | asyncio.Task[None]] = deque()
    arrived = asyncio.Event()

    async def read(index: int, source: AsyncGenerator[T]) -> None:
        async with aclosing(source):
            async for event in source:
                put((index, event))

    def put(item: tuple[int, T] | asyncio.Task[None]) -> None:
        items.append(item)
        arrived.set()

    readers = [asyncio.create_task(read(index, source)) for index, source in enumerate(sources)]
    for reader in readers:
        reader.add_done_callback(put)
    try:
        running = len(readers)
        while running:
            try:
                async with asyncio.timeout(tick):
                    await arrived.wait()
            except TimeoutError:
                yield None
                continue
            arrived.clear()
            while items:
                item = items.popleft()
                if isinstance(item, asyncio.Task):
                    item.result()
                    running -= 1
                else:
                    yield item
    finally:
        await end(*readers)
        # A task that ended with an exception refers to the frame of `read`, and so to these items. The cycle would keep
        # the request's data until the next full garbage collection.
        items.clear()
