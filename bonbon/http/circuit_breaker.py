"""A circuit breaker, which stops calls to a peer that keeps failing and lets single probes detect its recovery."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from bonbon.errors import BonbonError


class CircuitOpen(BonbonError):
    """Raised instead of calling a peer that has failed too often recently.

    Args:
        retry_after: The seconds until a probe is allowed.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"it failed too often; it gets no more calls for {retry_after:.1f} s")
        self.retry_after = retry_after


class BreakerState(StrEnum):
    """Closed: calls pass. Open: calls are refused. Half-open: one probe passes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Counts consecutive failures of the calls made inside `guard`. For use on one event loop.

    Args:
        failures: The number of consecutive failures that open the breaker.
        cool_down: The seconds that it stays open before one probe may pass.
        clock: Returns seconds that never go backwards.
    """

    def __init__(
        self, *, failures: int = 5, cool_down: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._cool_down, self._clock = failures, cool_down, clock
        self._failed = 0
        self._opened: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._opened is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._remaining > 0 else BreakerState.HALF_OPEN

    @property
    def _remaining(self) -> float:
        return 0.0 if self._opened is None else self._opened + self._cool_down - self._clock()

    @contextmanager
    def guard(self, failure: type[Exception]) -> Iterator[None]:
        """Runs one call.

        An exception of type `failure` counts against the peer. Any other Exception shows that the peer answered, which
        counts as a success. A cancelled call does not count.

        Raises:
            CircuitOpen: The peer must not be called now.
        """
        probe = self._enter()
        try:
            yield
        except failure:
            self._failure(probe)
            raise
        except Exception:
            self._success(probe)
            raise
        else:
            self._success(probe)
        finally:
            if probe:
                self._probing = False

    def _enter(self) -> bool:
        if self._opened is None:
            return False
        if self._remaining > 0 or self._probing:
            raise CircuitOpen(max(self._remaining, 0.0))
        self._probing = True
        return True

    def _failure(self, probe: bool) -> None:
        self._failed += 1
        # Calls that began before the breaker opened must not prolong the cool-down.
        if probe or (self._opened is None and self._failed >= self._limit):
            self._opened = self._clock()

    def _success(self, probe: bool) -> None:
        if probe or self._opened is None:
            self._failed, self._opened = 0, None
