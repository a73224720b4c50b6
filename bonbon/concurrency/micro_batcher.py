"""Micro-batching: one worker thread serves many concurrent callers in batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 4
"""Batches' worth of waiting items that are sorted together; the oldest go first, so nothing starves."""


class _Entry(NamedTuple, Generic[T, R]):
    item: T
    length: int
    future: asyncio.Future[R]


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
        self._waiting: deque[_Entry[T, R]] = deque()
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
        """One result per item, in order.

        Raises what `function` raised, and RuntimeError when not started or when it gave no result for each item.
        """
        if self._worker is None:
            raise RuntimeError("not started")
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
        """The results, or why there are none; in the thread, from which a future does not take every exception."""
        try:
            results = self._function(items)
        except StopIteration as error:
            return RuntimeError(f"StopIteration: {error}")
        except Exception as error:  # noqa: BLE001 - the callers are told
            return error
        except BaseException as error:  # noqa: BLE001 - it would end the event loop, which has done nothing
            return RuntimeError(f"{type(error).__name__}: {error}")
        if len(results) != len(items):
            return RuntimeError(f"{len(results)} results for {len(items)} items")
        return results
