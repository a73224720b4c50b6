"""Micro-batching: one worker thread serves many concurrent callers in batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from bonbon.concurrency.shielded import end

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 4
"""The number of batches' worth of waiting items that are sorted at a time; the oldest go first, so that none
starves."""


class _Entry(NamedTuple, Generic[T, R]):
    item: T
    length: int
    future: asyncio.Future[R]


class MicroBatcher(Generic[T, R]):
    """Runs `function` over the items of all callers, one batch at a time, in one thread.

    It never waits for a batch to fill: an idle worker starts with the items that are waiting, and items that arrive
    meanwhile form the next batch. Waiting items of a cancelled caller are dropped. When a batch fails, each of its
    items is tried once more by itself, so that an item that cannot be processed fails only its own caller.

    Args:
        function: Returns one result per item, in order; it may block.
        batch_size: The maximum number of items per call of `function`.
        length: Returns the length of an item; batches consist of items of similar length.
    """

    def __init__(
        self, function: Callable[[list[T]], Sequence[R]], *, batch_size: int, length: Callable[[T], int]
    ) -> None:
        self._function, self._batch_size, self._length = function, batch_size, length
        self._waiting: deque[_Entry[T, R]] = deque()
        self._unfinished: set[asyncio.Future[R]] = set()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="microbatch")
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stops the worker after its current batch. Callers that are still waiting get RuntimeError."""
        if self._worker is None:
            return
        await end(self._worker)
        self._worker = None
        self._waiting.clear()
        for future in self._unfinished:
            if not future.done():
                future.set_exception(RuntimeError("stopped before the item was processed"))
        await asyncio.to_thread(self._thread.shutdown)

    async def run(self, items: Sequence[T]) -> list[R]:
        """Returns one result per item, in order.

        Raises what `function` raised, and RuntimeError when the batcher is not started or `function` did not return one
        result per item.
        """
        if self._worker is None:
            raise RuntimeError("the micro-batcher is not started")
        loop = asyncio.get_running_loop()
        entries: list[_Entry[T, R]] = [_Entry(item, self._length(item), loop.create_future()) for item in items]
        futures = [entry.future for entry in entries]
        self._unfinished.update(futures)
        self._waiting.extend(entries)
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
            window.sort(key=lambda entry: entry.length)
            for first in range(0, len(window), self._batch_size):
                batch = [entry for entry in window[first : first + self._batch_size] if not entry.future.done()]
                if batch:
                    await self._run_batch(batch)

    async def _run_batch(self, batch: list[_Entry[T, R]]) -> None:
        items = [entry.item for entry in batch]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._call, items)
        await asyncio.wait({running})
        found = running.result()
        if isinstance(found, Exception) and len(batch) > 1:
            for entry in batch:
                if not entry.future.done():
                    await self._run_batch([entry])
            return
        for i, entry in enumerate(batch):
            if entry.future.done():
                continue
            if isinstance(found, Exception):
                entry.future.set_exception(found)
            else:
                entry.future.set_result(found[i])

    def _call(self, items: list[T]) -> Sequence[R] | Exception:
        """Returns the results, or the exception, because a future of a thread does not accept every exception."""
        try:
            results = self._function(items)
        except StopIteration as error:
            return RuntimeError(f"StopIteration: {error}")
        except Exception as error:  # noqa: BLE001 - the callers get it
            return error
        except BaseException as error:  # noqa: BLE001 - raised here, it would end the event loop
            return RuntimeError(f"{type(error).__name__}: {error}")
        if len(results) != len(items):
            return RuntimeError(f"the function returned {len(results)} results for {len(items)} items")
        return results
