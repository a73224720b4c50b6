"""Admission: which requests are admitted and in which order, and the rate limits of tenants."""

import asyncio
import random

import pytest

from bonbon.errors import ClientTooSlow, Overloaded, RateLimited
from bonbon.settings import Limits
from service.limits.admission import Admission
from service.limits.rate_limits import RateLimits


class Crowd:
    """Requests that wait for admission and stay admitted until they are released."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.inside: list[str] = []
        self.order: list[str] = []

    async def ask(self, tenant: str, tokens: int, leave: asyncio.Event) -> None:
        async with self.admission.admit(tenant, tokens):
            self.inside.append(tenant)
            self.order.append(tenant)
            assert self.admission.in_flight <= max(self.admission.capacity, tokens)
            await leave.wait()
            self.inside.remove(tenant)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_than_the_capacity_is_admitted_and_all_get_their_turn() -> None:
    rng = random.Random(0)
    admission = Admission(100, max_waiting=1000, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    leave.set()
    await asyncio.gather(*(crowd.ask(rng.choice("abc"), rng.randrange(1, 150), leave) for _ in range(300)))
    assert (len(crowd.order), admission.in_flight, admission.waiting) == (300, 0, 0)


async def test_a_flood_does_not_starve_another_tenant() -> None:
    """A request of b behind a hundred of a is admitted next, after those already admitted."""
    admission = Admission(10, max_waiting=1000, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    flood = [asyncio.create_task(crowd.ask("a", 10, leave)) for _ in range(100)]
    await settled()
    other = asyncio.create_task(crowd.ask("b", 10, leave))
    await settled()
    leave.set()
    await asyncio.gather(other, *flood)
    assert crowd.order.index("b") <= 2


async def test_tenants_that_wait_share_by_tokens_not_by_requests() -> None:
    """Each request of a is ten times as large, so while both wait, ten requests of b are admitted for each of a's."""
    admission = Admission(100, max_waiting=1000, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    asked = [crowd.ask("a", 100, leave) for _ in range(20)] + [crowd.ask("b", 10, leave) for _ in range(200)]
    tasks = [asyncio.create_task(ask) for ask in asked]
    await settled()
    leave.set()
    await asyncio.gather(*tasks)
    half = crowd.order[: len(crowd.order) // 2]
    assert half.count("a") == pytest.approx(half.count("b") / 10, abs=2)


async def test_what_is_larger_than_the_capacity_is_admitted_alone() -> None:
    admission = Admission(10, max_waiting=10, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    tasks = [asyncio.create_task(crowd.ask(name, tokens, leave)) for name, tokens in (("small", 1), ("large", 99))]
    await settled()
    assert crowd.inside == ["small"]
    leave.set()
    await asyncio.gather(*tasks)
    assert crowd.order == ["small", "large"]


async def test_a_full_queue_refuses_and_a_flood_gives_way() -> None:
    admission = Admission(10, max_waiting=4, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    flood = [asyncio.create_task(crowd.ask("a", 10, leave)) for _ in range(5)]
    await settled()
    with pytest.raises(Overloaded):
        await crowd.ask("a", 10, leave)
    other = asyncio.create_task(crowd.ask("b", 10, leave))
    await settled()
    assert isinstance(flood[-1].exception(), Overloaded), "the newest of the flood gave its place"
    leave.set()
    await asyncio.gather(other, *flood[:-1])
    assert crowd.order.index("b") <= 2


async def test_who_has_waited_too_long_or_leaves_takes_no_place() -> None:
    admission = Admission(10, max_waiting=4, max_wait=0.05)
    crowd, leave = Crowd(admission), asyncio.Event()
    inside = asyncio.create_task(crowd.ask("a", 10, leave))
    await settled()
    leaving = asyncio.create_task(crowd.ask("b", 10, leave))
    await settled()
    leaving.cancel()
    with pytest.raises(Overloaded, match="too long"):
        await crowd.ask("c", 10, leave)
    assert admission.waiting == 0
    leave.set()
    await inside
    assert admission.in_flight == 0
    await crowd.ask("b", 10, leave)


async def test_whoever_leaves_at_any_moment_leaves_nothing_behind() -> None:
    rng = random.Random(1)
    admission = Admission(50, max_waiting=20, max_wait=0.02)
    crowd, leave = Crowd(admission), asyncio.Event()
    leave.set()
    for _ in range(50):
        tasks = [asyncio.create_task(crowd.ask(rng.choice("ab"), rng.randrange(1, 60), leave)) for _ in range(30)]
        for task in rng.sample(tasks, 15):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (admission.in_flight, admission.waiting) == (0, 0)


async def test_who_leaves_in_the_turn_in_which_it_is_admitted_leaves_nothing_behind() -> None:
    admission = Admission(10, max_waiting=4, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    inside = asyncio.create_task(crowd.ask("a", 10, leave))
    await settled()
    leaving = asyncio.create_task(crowd.ask("b", 10, leave))
    await settled()
    leave.set()
    leaving.cancel()
    await asyncio.gather(inside, leaving, return_exceptions=True)
    assert (admission.in_flight, admission.waiting) == (0, 0)
    await crowd.ask("b", 10, leave)


async def test_who_needs_more_than_expected_keeps_its_place_and_no_newcomer_takes_it() -> None:
    admission = Admission(10, max_waiting=1, max_wait=60)
    crowd, leave, grow, grown = Crowd(admission), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def growing() -> None:
        async with admission.admit("a", 4) as reservation:
            await grow.wait()
            await admission.enlarge(reservation, 8)
            assert (reservation.tokens, admission.in_flight) == (8, 8)
            crowd.order.append("a")
            grown.set()
            await leave.wait()

    inside = asyncio.create_task(crowd.ask("b", 6, leave))
    grower = asyncio.create_task(growing())
    await settled()
    newcomer = asyncio.create_task(crowd.ask("c", 10, leave))  # takes the only place in the queue
    await settled()
    grow.set()
    await settled()
    assert (admission.in_flight, admission.waiting) == (6, 2)
    leave.set()
    await asyncio.gather(inside, grower, newcomer)
    assert crowd.order == ["b", "a", "c"]
    assert (admission.in_flight, admission.waiting) == (0, 0)


async def test_who_needs_more_has_no_longer_than_the_others_and_leaves_nothing_behind() -> None:
    admission = Admission(10, max_waiting=4, max_wait=60)
    leave = asyncio.Event()
    inside = asyncio.create_task(Crowd(admission).ask("b", 6, leave))
    await settled()
    async with admission.admit("a", 4) as reservation:
        reservation.deadline = asyncio.get_running_loop().time()
        with pytest.raises(Overloaded, match="too long"):
            await admission.enlarge(reservation, 8)
    assert (admission.in_flight, admission.waiting) == (6, 0)
    leave.set()
    await inside
    assert admission.in_flight == 0


async def test_who_is_displaced_in_the_turn_in_which_it_leaves_fails_nobody_else() -> None:
    admission = Admission(10, max_waiting=4, max_wait=60)
    crowd, leave = Crowd(admission), asyncio.Event()
    flood = [asyncio.create_task(crowd.ask("a", 10, leave)) for _ in range(5)]
    await settled()
    flood[-1].cancel()
    other = asyncio.create_task(crowd.ask("b", 10, leave))
    await settled()
    assert not other.done()
    leave.set()
    await asyncio.gather(other, *flood, return_exceptions=True)
    assert other.exception() is None
    assert (admission.in_flight, admission.waiting) == (0, 0)


def test_what_was_not_drawn_is_given_back_however_the_request_ends() -> None:
    limits = RateLimits(Limits(requests_per_minute=10, tokens_per_minute=1000), {}, clock=Clock())
    for failure, requests, tokens in (
        (None, 9, 970),
        (asyncio.CancelledError(), 8, 940),
        (ClientTooSlow(), 7, 910),
        (ValueError(), 7, 910),
    ):
        try:
            with limits.charged("a", 400) as charge:
                charge.drawn = 30
                if failure is not None:
                    raise failure
        except (asyncio.CancelledError, ClientTooSlow, ValueError):
            pass
        left = limits.headers("a")
        assert int(left["x-ratelimit-remaining-requests"]) == requests
        assert int(left["x-ratelimit-remaining-tokens"]) == tokens


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_holds_so_many_requests_and_tokens_for_each_tenant() -> None:
    clock = Clock()
    limits = RateLimits(Limits(), {"a": Limits(requests_per_minute=3, tokens_per_minute=600)}, clock=clock)
    limits.charge("a", 500)
    with pytest.raises(RateLimited, match="600 tokens") as refused:
        limits.charge("a", 500)
    assert refused.value.headers["retry-after"] == "40"
    limits.refund("a", 450)
    assert limits.headers("a") == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20.000s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "550",
        "x-ratelimit-reset-tokens": "5.000s",
    }
    limits.charge("a", 100)
    limits.charge("a", 100)
    with pytest.raises(RateLimited, match="3 requests"):
        limits.charge("a", 1)
    for _ in range(100):
        limits.charge("b", 10**6)
    assert limits.headers("b") == {}
    clock.now = 60.0
    limits.charge("a", 600)


def test_what_asks_for_more_than_a_minutes_worth_is_admitted_when_it_is_full_and_paid_off() -> None:
    clock = Clock()
    limits = RateLimits(Limits(tokens_per_minute=100), {}, clock=clock)
    limits.charge("a", 250)
    for clock.now in (0.0, 60.0, 100.0, 149.0):
        with pytest.raises(RateLimited):
            limits.charge("a", 100)
    clock.now = 150.0
    limits.charge("a", 100)
