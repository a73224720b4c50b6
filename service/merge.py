"""Several streams of events as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def merge(
    sources: Sequence[AsyncGenerator[T]], tick: float | None = None
) -> AsyncGenerator[tuple[int, T] | None]:
    """Each event with the index of its source, as they come; None whenever `tick` seconds pass without one.

    Each source is read to its end by one task of its own, however slowly the events are taken. The first failure
    ends everything. When the generator is closed, every source has been closed.
    """
    queue: asyncio.Queue[tuple[int, T] | asyncio.Task[None]] = asyncio.Queue()

    async def read(index: int, source: AsyncGenerator[T]) -> None:
        async with aclosing(source):
            async for event in source:
                queue.put_nowait((index, event))

    readers = [asyncio.create_task(read(index, source)) for index, source in enumerate(sources)]
    for reader in readers:
        reader.add_done_callback(queue.put_nowait)
    try:
        running = len(readers)
        while running:
            item: tuple[int, T] | asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(tick):
                    item = await queue.get()
            except TimeoutError:
                pass  # a tick
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
