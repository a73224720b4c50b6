import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from bonbon.concurrency.micro_batcher import MicroBatcher


class Work:
    """Doubles numbers; blocks every batch until the test releases it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.first = threading.Event()

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.first.wait, 10)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.first.set()
        self.threads.add(threading.get_ident())
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def batcher(work: Work) -> AsyncIterator[MicroBatcher[int, int]]:
    batcher = MicroBatcher(work, batch_size=4, length=lambda item: item)
    await batcher.start()
    yield batcher
    work.go.set()
    await batcher.stop()


async def test_every_caller_gets_its_own_results_in_order(batcher: MicroBatcher[int, int], work: Work) -> None:
    items = [[(7 * i + j) % 101 + 20 for j in range(i % 5 + 1)] for i in range(40)]
    results = await asyncio.gather(*(batcher.run(mine) for mine in items))
    assert results == [[2 * item for item in mine] for mine in items]
    assert all(len(batch) <= 4 for batch in work.batches)
    assert len(work.threads) == 1
    assert threading.get_ident() not in work.threads


async def test_what_arrives_while_it_works_shares_batches_of_like_length(
    batcher: MicroBatcher[int, int], work: Work
) -> None:
    work.go.clear()
    first = asyncio.create_task(batcher.run([1]))
    await work.begun()
    others = [asyncio.create_task(batcher.run([item])) for item in (90, 10, 80, 20, 70, 30, 60, 40)]
    await asyncio.sleep(0.02)
    work.go.set()
    await asyncio.gather(first, *others)
    assert work.batches == [[1], [10, 20, 30, 40], [60, 70, 80, 90]]


async def test_a_cancelled_callers_waiting_items_are_dropped(batcher: MicroBatcher[int, int], work: Work) -> None:
    work.go.clear()
    first = asyncio.create_task(batcher.run([1]))
    await work.begun()
    cancelled, kept = asyncio.create_task(batcher.run([2, 3])), asyncio.create_task(batcher.run([4]))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.sleep(0.01)
    work.go.set()
    assert await first == [2]
    assert await kept == [8]
    assert work.batches == [[1], [4]]


async def test_a_failure_reaches_its_callers_and_the_worker_goes_on(batcher: MicroBatcher[int, int]) -> None:
    with pytest.raises(ValueError, match="unlucky"):
        await batcher.run([13, 14, 200, 300, 400])
    assert await batcher.run([21]) == [42]


@pytest.mark.parametrize(
    "broken",
    [lambda items: items[1:], lambda items: next(iter(())), lambda items: sys.exit(1)],
    ids=["too few results", "StopIteration", "SystemExit"],
)
async def test_whatever_the_function_does_callers_are_told_and_the_worker_goes_on(
    broken: Callable[[list[int]], list[int]],
) -> None:
    def function(items: list[int]) -> list[int]:
        return broken(items) if 1 in items else items

    batcher = MicroBatcher[int, int](function, batch_size=4, length=lambda item: item)
    await batcher.start()
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError):
            await batcher.run([1, 2])
        assert await batcher.run([3]) == [3]
    await batcher.stop()


async def test_an_item_without_a_length_is_its_callers_problem_alone(work: Work) -> None:
    batcher = MicroBatcher[int, int](work, batch_size=4, length=lambda item: 1 // item)
    await batcher.start()
    async with asyncio.timeout(30):
        with pytest.raises(ZeroDivisionError):
            await batcher.run([1, 0])
        assert await batcher.run([2]) == [4]
    await batcher.stop()


async def test_stopping_tells_those_who_wait(work: Work) -> None:
    batcher = MicroBatcher(work, batch_size=1, length=lambda item: item)
    with pytest.raises(RuntimeError, match="not started"):
        await batcher.run([1])
    await batcher.stop()
    await batcher.start()
    work.go.clear()
    waiting = asyncio.create_task(batcher.run([1, 2]))
    await work.begun()
    threading.Timer(0.05, work.go.set).start()
    await batcher.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        await waiting
    assert work.batches == [[1]]


async def test_an_item_that_cannot_be_worked_on_fails_its_own_caller_only() -> None:
    sizes: list[int] = []

    def function(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]

    batches = MicroBatcher(function, batch_size=8, length=lambda item: 0)
    await batches.start()
    try:
        asked = [[1, 2], [3, 13], [4]]
        results = await asyncio.gather(*map(batches.run, asked), return_exceptions=True)
    finally:
        await batches.stop()
    assert results[0] == [2, 4]
    assert isinstance(results[1], ValueError)
    assert results[2] == [8]
    assert max(sizes) > 1
