"""Micro-batching: one worker thread serves many concurrent callers in batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 4
"""Batches' worth of waiting items that are sorted together; the oldest go first, so nothing starves."""


class MicroBatcher(Generic[T, R]):
    """Runs `function` over the items of all callers, a batch at a time, in one thread.

    It never waits for a batch to fill: an idle worker starts with what is there, and what arrives meanwhile makes the
    next batch. Items of a cancelled caller that have not begun are dropped. The items of a batch that fails are tried
    once more, each by itself, so that one that cannot be worked on fails its own caller only.

    Args:
        function: one result per item, in order; blocking.
        batch_size: most items per call of `function`.
        length: batches are made of items of like length.
    """

    def __init__(
        self, function: Callable[[list[T]], Sequence[R]], *, batch_size: int, length: Callable[[T], int]
    ) -> None:
        self._function, self._batch_size, self._length = function, batch_size, length
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._unfinished: set[asyncio.Future[R]] = set()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="microbatch")
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Callers that still wait get RuntimeError. Returns when the batch in the thread has ended."""
        if self._worker is None:
            return
        self._worker.cancel()
        await asyncio.wait({self._worker})
        self._worker = None
        self._waiting.clear()
        for future in self._unfinished:
            if not future.done():
                future.set_exception(RuntimeError("stopped while it was working"))
        await asyncio.to_thread(self._thread.shutdown)

    async def run(self, items: Sequence[T]) -> list[R]:
        """One result per item, in order. Raises what `function` raised, RuntimeError when not started."""
        if self._worker is None:
            raise RuntimeError("not started")
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._unfinished.update(futures)
        self._waiting.extend(zip(items, futures, strict=True))
        self._arrived.set()
        try:
            return await asyncio.gather(*futures)
        finally:
            self._unfinished.difference_update(futures)
            for future in futures:
                future.cancel()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            window = [self._waiting.popleft() for _ in range(min(len(self._waiting), WINDOW * self._batch_size))]
            if not self._waiting:
                self._arrived.clear()
            window.sort(key=lambda entry: self._length(entry[0]))
            for first in range(0, len(window), self._batch_size):
                batch = [entry for entry in window[first : first + self._batch_size] if not entry[1].done()]
                if batch:
                    await self._run_batch(batch)

    async def _run_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        items = [item for item, _ in batch]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._function, items)
        await asyncio.wait({running})
        error = running.exception()
        if error and len(batch) > 1:
            for entry in batch:
                if not entry[1].done():
                    await self._run_batch([entry])
            return
        results = [] if error else running.result()
        for i, (_, future) in enumerate(batch):
            if future.done():
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(results[i])
