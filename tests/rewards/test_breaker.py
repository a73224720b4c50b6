import asyncio

import pytest

from bonbon.http.circuit_breaker import BreakerState, CircuitBreaker, CircuitOpen


class Down(Exception):
    """Raised when the peer is down."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    with breaker.guard(Down):
        if error:
            raise error


def state(breaker: CircuitBreaker) -> BreakerState:
    return breaker.state


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Down):
            call(breaker, Down())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failures=3, cool_down=10, clock=clock)


def test_opens_after_consecutive_failures_only(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    call(breaker)
    fail(breaker, 2)
    assert state(breaker) is BreakerState.CLOSED
    fail(breaker, 1)
    assert state(breaker) is BreakerState.OPEN
    with pytest.raises(CircuitOpen) as refused:
        call(breaker)
    assert refused.value.retry_after == 10


def test_an_answer_that_is_an_error_is_not_a_failure(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    with pytest.raises(ValueError, match="bad request"):
        call(breaker, ValueError("bad request"))
    fail(breaker, 2)
    assert state(breaker) is BreakerState.CLOSED


def test_one_probe_after_the_cool_down_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    assert state(breaker) is BreakerState.HALF_OPEN
    with breaker.guard(Down), pytest.raises(CircuitOpen):
        call(breaker)
    assert state(breaker) is BreakerState.CLOSED
    fail(breaker, 2)
    assert state(breaker) is BreakerState.CLOSED


def test_a_failed_probe_starts_another_cool_down(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    fail(breaker, 1)
    clock.now = 19.9
    with pytest.raises(CircuitOpen):
        call(breaker)
    clock.now = 20
    call(breaker)
    assert state(breaker) is BreakerState.CLOSED


def test_a_cancelled_probe_lets_another_try(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 10
    with pytest.raises(asyncio.CancelledError):
        call(breaker, asyncio.CancelledError())
    assert state(breaker) is BreakerState.HALF_OPEN
    call(breaker)
    assert state(breaker) is BreakerState.CLOSED


def test_calls_from_before_it_opened_change_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    late_failure, late_success = breaker.guard(Down), breaker.guard(Down)
    late_failure.__enter__()
    late_success.__enter__()
    fail(breaker, 3)
    clock.now = 5
    assert not late_failure.__exit__(Down, Down(), None)
    late_success.__exit__(None, None, None)
    assert state(breaker) is BreakerState.OPEN
    clock.now = 10
    assert state(breaker) is BreakerState.HALF_OPEN
