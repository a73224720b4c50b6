"""Requests arrive, wait, time out and disconnect in any order, and everything they reserved is released.

Hypothesis makes up the order and takes the event loop one turn at a time, so that a request may be cancelled in the
very turn in which it is let in, times out, or is displaced.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace

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

CAPACITY, MOST_WAITING, MAX_WAIT = 100, 3, 10.0
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
    tokens: int
    task: "asyncio.Task[None]" = field(init=False)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    drawn: int = 0
    fails: bool = False
    inside: bool = False
    paid: int = 0


class Entries(RuleBasedStateMachine):
    """Any order of arrivals, departures, failures, cancellations, pauses, time-outs and steps of the loop."""

    @initialize()
    def start(self) -> None:
        self.loop = SteppedLoop()
        service = ServiceSettings(max_tokens_in_flight=CAPACITY, max_waiting=MOST_WAITING, max_wait=MAX_WAIT)
        limits = RateLimits(Limits(tokens_per_minute=PER_MINUTE), {}, clock=lambda: 0.0)
        self.state = replace(build_state(Settings(engine="fake", service=service)), limits=limits)
        self.requests: list[Request] = []
        self.resume: asyncio.Event | None = None
        self.pauses: list[asyncio.Task[None]] = []

    async def _ask(self, request: Request) -> None:
        ask = CompletionRequest(
            "base", (Prompt(text="Hi"),), Sampling(max_tokens=request.tokens), tenant=request.tenant
        )
        async with let_in(self.state, ask) as (_, charge):
            request.inside = True
            try:
                await request.leave.wait()
                if request.fails:
                    raise EngineError("the accelerator is gone")
            finally:
                charge.drawn = request.paid = request.drawn
                request.inside = False

    @rule(tenant=st.sampled_from(TENANTS), tokens=st.integers(1, CAPACITY * 3 // 2))
    def arrive(self, tenant: str, tokens: int) -> None:
        request = Request(tenant, tokens)
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
        """When nothing happens any more, nobody waits for room that is there."""
        for _ in range(20):
            self.loop.turn()
        admission, serving = self.state.admission, self.state.router
        assert admission.waiting <= MOST_WAITING
        assert not admission.waiting or admission.in_flight > 0
        if not serving.resting:
            assert serving.waiting == 0
            assert admission.in_flight == sum(request.tokens for request in self.requests if request.inside)

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        if not hasattr(self, "state"):
            return
        inside = [request for request in self.requests if request.inside]
        assert self.state.router.in_flight == len(inside)
        assert self.state.admission.in_flight >= sum(request.tokens for request in inside)
        most = max((request.tokens for request in self.requests), default=0)
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
        admission, serving = self.state.admission, self.state.router
        assert (admission.in_flight, admission.waiting, serving.in_flight, serving.waiting) == (0, 0, 0, 0)
        for tenant in TENANTS:
            paid = sum(r.paid for r in self.requests if r.tenant == tenant and not _failed(r))
            left = int(self.state.limits.headers(tenant)["x-ratelimit-remaining-tokens"])
            assert left == PER_MINUTE - paid
        self.loop.close()


def _failed(request: Request) -> bool:
    return not request.task.cancelled() and request.task.exception() is not None


def test_whatever_happens_everything_that_was_taken_is_given_back() -> None:
    run_state_machine_as_test(
        Entries, settings=settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
    )
