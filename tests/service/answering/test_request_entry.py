"""Requests arrive, wait, time out and disconnect in any order, and everything they reserved is released.

Hypothesis makes up the order and takes the event loop one turn at a time, so that a request may be cancelled in the
very turn in which it is let in, times out, or is displaced.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bonbon.engines.engine import Sampling
from bonbon.errors import EngineError, Overloaded, RateLimited
from bonbon.prompt import Prompt
from bonbon.settings import Limits, ServiceSettings, Settings
from service.answering.completion_request import CompletionRequest
from service.answering.request_entry import let_in
from service.app import build_state
from service.limits.rate_limits import RateLimits

CAPACITY, MOST_WAITING, MAX_WAIT, MOST_DRAWS, N = 100, 3, 10.0, 4, 3
PER_MINUTE = 1_000_000
TENANTS = ("a", "b", "c")


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop that is advanced one step at a time and whose clock only moves when it is set."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()


@dataclass(eq=False)
class Request:
    """One request that stays admitted until `leave` is set and then has generated `drawn` tokens or fails."""

    tenant: str
    max_tokens: int
    best_of: int = 1
    task: "asyncio.Task[None]" = field(init=False)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    drawn: int = 0
    fails: bool = False
    inside: bool = False
    paid: int = 0

    @property
    def tokens(self) -> int:
        return self.best_of * self.max_tokens


class Entries(RuleBasedStateMachine):
    """Any order of arrivals, departures, failures, cancellations, pauses, time-outs and steps of the loop."""

    @initialize()
    def start(self) -> None:
        self.loop = SteppedLoop()
        service = ServiceSettings(max_tokens_in_flight=CAPACITY, max_waiting=MOST_WAITING, max_wait=MAX_WAIT)
        limits = RateLimits(Limits(tokens_per_minute=PER_MINUTE), {}, clock=lambda: 0.0)
        self.state = replace(build_state(Settings(engine="fake", n=N, service=service)), limits=limits)
        self.requests: list[Request] = []
        self.resume: asyncio.Event | None = None
        self.pauses: list[asyncio.Task[None]] = []

    async def _ask(self, request: Request) -> None:
        asked = CompletionRequest(
            "bonbon", (Prompt(text="Hi"),), Sampling(max_tokens=request.max_tokens), tenant=request.tenant
        )
        async with let_in(self.state, asked) as (route, charge):
            request.inside, request.best_of = True, route.best_of
            assert charge.tokens == request.tokens
            try:
                await request.leave.wait()
                if request.fails:
                    raise EngineError("the accelerator is gone")
            finally:
                charge.drawn = request.paid = request.drawn
                request.inside = False

    @rule(k=st.integers(1, MOST_DRAWS))
    def promote(self, k: int) -> None:
        """Another version becomes champion, which samples k candidates."""
        routes = self.state.router.routes
        loaded = routes.loaded[routes.base]
        champion = replace(loaded, name="champion-1", k=k)
        self.state.router.publish(
            replace(routes, champion=champion.name, loaded={loaded.name: loaded, champion.name: champion})
        )

    @rule(tenant=st.sampled_from(TENANTS), max_tokens=st.integers(1, CAPACITY // 2))
    def arrive(self, tenant: str, max_tokens: int) -> None:
        request = Request(tenant, max_tokens)
        request.task = self.loop.create_task(self._ask(request))
        self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), fails=st.booleans())
    def leave(self, data: st.DataObject, fails: bool) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if not request.leave.is_set():
            request.drawn, request.fails = data.draw(st.integers(0, request.tokens)), fails
            request.leave.set()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.requests)).task.cancel()

    @rule(times=st.integers(1, 3))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self.loop.turn()

    @rule(seconds=st.sampled_from((0.5, MAX_WAIT / 2, MAX_WAIT)))
    def wait(self, seconds: float) -> None:
        self.loop.now += seconds

    @precondition(lambda self: self.resume is None)
    @rule()
    def pause(self) -> None:
        """Other weights are loaded."""
        self.resume = resume = asyncio.Event()

        async def paused() -> None:
            with suppress(EngineError):
                async with self.state.router.paused(MAX_WAIT):
                    await resume.wait()

        if not self.state.router.resting:
            self.pauses.append(self.loop.create_task(paused()))

    @precondition(lambda self: self.resume is not None)
    @rule(cancel=st.booleans())
    def go_on(self, cancel: bool) -> None:
        assert self.resume is not None
        self.resume.set()
        self.resume = None
        if cancel and self.pauses:
            self.pauses[-1].cancel()

    @rule()
    def settle(self) -> None:
        """When nothing happens any more, nobody waits for tokens that are free."""
        for _ in range(20):
            self.loop.turn()
        admission, router = self.state.admission, self.state.router
        assert admission.waiting <= MOST_WAITING
        assert not admission.waiting or admission.in_flight > 0
        if not router.resting:
            assert router.waiting == 0
            assert admission.in_flight == sum(request.tokens for request in self.requests if request.inside)

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        if not hasattr(self, "state"):
            return
        inside = [request for request in self.requests if request.inside]
        assert self.state.router.in_flight == len(inside)
        assert self.state.admission.in_flight >= sum(request.tokens for request in inside)
        most = max((request.max_tokens for request in self.requests), default=0) * MOST_DRAWS
        assert self.state.admission.in_flight <= max(CAPACITY, most)

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        if self.resume is not None:
            self.resume.set()
        for request in self.requests:
            request.leave.set()
        for _ in range(20 + 5 * len(self.requests)):
            self.loop.turn()
        unfinished = [task for task in (*self.pauses, *(request.task for request in self.requests)) if not task.done()]
        assert not unfinished
        for request in self.requests:
            error = None if request.task.cancelled() else request.task.exception()
            assert error is None or isinstance(error, EngineError | Overloaded | RateLimited), error
        admission, router = self.state.admission, self.state.router
        assert (admission.in_flight, admission.waiting, router.in_flight, router.waiting) == (0, 0, 0, 0)
        for tenant in TENANTS:
            paid = sum(r.paid for r in self.requests if r.tenant == tenant and not _failed(r))
            left = int(self.state.limits.headers(tenant)["x-ratelimit-remaining-tokens"])
            assert left == PER_MINUTE - paid
        self.loop.close()


async def _entered(k: int, then: int) -> tuple[int, int, int]:
    """Returns the draws, the tokens charged and the tokens in flight of a request that waits for a slot while the
    champion's k changes from `k` to `then`."""
    service = ServiceSettings(max_tokens_in_flight=CAPACITY, max_waiting=MOST_WAITING, max_wait=MAX_WAIT)
    state = replace(
        build_state(Settings(engine="fake", n=N, service=service)),
        limits=RateLimits(Limits(tokens_per_minute=1000), {}, clock=lambda: 0.0),
    )
    base = state.router.routes.loaded[state.router.routes.base]

    def promote(k: int) -> None:
        champion = replace(base, name="champion-1", k=k)
        loaded = {base.name: base, champion.name: champion}
        state.router.publish(replace(state.router.routes, champion=champion.name, loaded=loaded))

    promote(k)
    entered, leave = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def request() -> None:
        asked = CompletionRequest("bonbon", (Prompt(text="Hi"),), Sampling(max_tokens=10), tenant="a")
        async with let_in(state, asked) as (route, charge):
            left = int(state.limits.headers("a")["x-ratelimit-remaining-tokens"])
            assert left == 1000 - charge.tokens
            seen.extend((route.best_of, charge.tokens, state.admission.in_flight))
            entered.set()
            await leave.wait()
            charge.drawn = charge.tokens

    async with asyncio.TaskGroup() as tasks:
        async with state.admission.admit("other", CAPACITY):
            tasks.create_task(request())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert state.admission.waiting == 1
            promote(then)
        await entered.wait()
        leave.set()
    assert (state.admission.in_flight, state.admission.waiting) == (0, 0)
    draws, charged, in_flight = seen
    assert state.limits.headers("a")["x-ratelimit-remaining-tokens"] == str(1000 - charged)
    return draws, charged, in_flight


@pytest.mark.parametrize(("k", "then"), [(2, 2), (4, 2), (2, 4)])
async def test_a_request_is_charged_for_the_draws_of_the_champion_that_answers_it(k: int, then: int) -> None:
    """No k equals n. The champion may change while the request waits."""
    assert await _entered(k, then) == (then, then * 10, then * 10)


def _failed(request: Request) -> bool:
    return not request.task.cancelled() and request.task.exception() is not None


def test_whatever_happens_everything_that_was_taken_is_given_back() -> None:
    run_state_machine_as_test(
        Entries, settings=settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
    )
