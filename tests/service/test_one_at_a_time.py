"""Tests of sharing one slow call among those who ask for its result."""

import asyncio

import pytest

from service.one_at_a_time import OneAtATime


class Counting:
    """Counts its calls, each of which takes a while or fails."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls, self.fails = seconds, 0, False

    async def __call__(self) -> int:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise ValueError("no")
        return self.calls


async def test_those_who_ask_meanwhile_share_a_call() -> None:
    shared = OneAtATime(Counting(0.01), 30.0)
    assert await asyncio.gather(*(shared() for _ in range(5))) == [1] * 5
    assert await shared() == 2


async def test_a_result_is_kept_in_proportion_to_what_it_took() -> None:
    counting = Counting(0.01)
    shared = OneAtATime(counting, 30.0, keep=1e6)
    assert [await shared() for _ in range(3)] == [1, 1, 1]
    quick = OneAtATime(Counting(0.0), 30.0, keep=1e-9)
    first = await quick()
    await asyncio.sleep(0.001)
    assert await quick() == first + 1


async def test_a_failure_is_not_kept() -> None:
    counting = Counting(0.0)
    counting.fails = True
    shared = OneAtATime(counting, 30.0, keep=1e6)
    with pytest.raises(ValueError, match="no"):
        await shared()
    counting.fails = False
    assert await shared() == 2
