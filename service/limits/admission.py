"""Limits how many tokens are generated at once, with a bounded queue that is fair to tenants."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from bonbon.errors import Overloaded


@dataclass(eq=False)
class _Waiter:
    """A waiting request. The decision is recorded here, so it does not matter whether the request's task is still
    waiting."""

    tenant: str
    tokens: int
    start: float
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    admitted: bool = False


@dataclass(eq=False)
class Reservation:
    """The tokens that may be generated for an admitted request.

    Attributes:
        deadline: The time on the loop's clock until which the request may wait.
    """

    tenant: str
    tokens: int
    deadline: float


class Admission:
    """Admits requests by the tokens that may be generated for them: candidates times max_tokens.

    Waiting tenants get equal shares of tokens (start-time fair queueing, Goyal, Vin and Cheng 1996), and each tenant's
    requests are admitted in order. A request that is larger than the capacity is admitted alone. When too many requests
    wait, the newest request of the tenant with the most waiting requests is refused.

    Args:
        capacity: Maximum number of tokens of all admitted requests.
        max_waiting: Maximum number of waiting requests.
        max_wait: Seconds that a request may wait.
    """

    def __init__(self, capacity: int, *, max_waiting: int, max_wait: float) -> None:
        self.capacity, self.max_waiting, self.max_wait = capacity, max_waiting, max_wait
        self.in_flight = 0
        self._queues: dict[str, deque[_Waiter]] = {}
        self._virtual_time = 0.0
        self._finish: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def admit(self, tenant: str, tokens: int) -> AsyncIterator[Reservation]:
        """Runs the block when the request is admitted.

        Raises:
            Overloaded: The request cannot wait, or has waited too long.
        """
        deadline = asyncio.get_running_loop().time() + self.max_wait
        await self._enter(tenant, tokens, deadline)
        reservation = Reservation(tenant, tokens, deadline)
        try:
            yield reservation
        finally:
            self.in_flight -= reservation.tokens
            self._admit_next()

    def reduce(self, reservation: Reservation, tokens: int) -> None:
        """Keeps `tokens` of a reservation and lets other requests have the rest."""
        returned = reservation.tokens - tokens
        reservation.tokens = tokens
        self.in_flight -= returned
        self._finish[reservation.tenant] -= returned
        self._admit_next()

    async def enlarge(self, reservation: Reservation, tokens: int) -> None:
        """Waits until a reservation may have `tokens`, which are more than it has.

        What it has goes to other requests meanwhile. It comes next, because it was admitted before those that wait,
        and its deadline stays.

        Raises:
            Overloaded: The request has waited too long; nothing is reserved for it any more.
        """
        self.in_flight -= reservation.tokens
        self._finish[reservation.tenant] += tokens - reservation.tokens
        reservation.tokens = 0
        waiter = _Waiter(reservation.tenant, tokens, -math.inf)
        self._queues.setdefault(reservation.tenant, deque()).appendleft(waiter)
        await self._wait(waiter, reservation.deadline)
        reservation.tokens = tokens

    async def _enter(self, tenant: str, tokens: int, deadline: float) -> None:
        if not self._queues and self._fits(tokens):
            self._count(tenant, tokens)
            return
        self._free_place(tenant)
        waiter = _Waiter(tenant, tokens, self._start(tenant, tokens))
        self._queues.setdefault(tenant, deque()).append(waiter)
        await self._wait(waiter, deadline)

    async def _wait(self, waiter: _Waiter, deadline: float) -> None:
        self._admit_next()
        decided = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await waiter.decided.wait()
                    decided = True
        finally:
            if not decided:
                self._withdraw(waiter)
        if not decided:
            raise Overloaded("the service is at capacity: the request has waited too long; try again later")
        if not waiter.admitted:
            raise Overloaded("the service is at capacity; try again later")

    def _free_place(self, tenant: str) -> None:
        if self.waiting < self.max_waiting:
            return
        longest = max(self._queues, key=lambda name: len(self._queues[name]))
        if longest == tenant or len(self._queues[longest]) <= len(self._queues.get(tenant, ())) + 1:
            raise Overloaded("the service is at capacity; try again later")
        newest = self._queues[longest][-1]
        self._refuse(newest)
        newest.decided.set()

    def _start(self, tenant: str, tokens: int) -> float:
        start = max(self._virtual_time, self._finish.get(tenant, 0.0))
        self._finish[tenant] = start + tokens
        return start

    def _count(self, tenant: str, tokens: int) -> None:
        self._virtual_time = self._start(tenant, tokens)
        self.in_flight += tokens

    def _fits(self, tokens: int) -> bool:
        return self.in_flight == 0 or self.in_flight + tokens <= self.capacity

    def _admit_next(self) -> None:
        while self._queues:
            first = min((queue[0] for queue in self._queues.values()), key=lambda waiter: waiter.start)
            if not self._fits(first.tokens):
                return  # smaller requests wait, too; otherwise a large one might wait forever
            self._remove(first)
            self._virtual_time = max(self._virtual_time, first.start)
            self.in_flight += first.tokens
            first.admitted = True
            first.decided.set()
        if self.in_flight == 0:
            self._finish.clear()
            self._virtual_time = 0.0

    def _withdraw(self, waiter: _Waiter) -> None:
        """Removes a request that nobody waits for any more, and releases its tokens if it was admitted meanwhile."""
        if waiter.admitted:
            self.in_flight -= waiter.tokens
        elif not waiter.decided.is_set():
            self._refuse(waiter)
        self._admit_next()

    def _refuse(self, waiter: _Waiter) -> None:
        self._remove(waiter)
        self._finish[waiter.tenant] -= waiter.tokens

    def _remove(self, waiter: _Waiter) -> None:
        queue = self._queues[waiter.tenant]
        queue.remove(waiter)
        if not queue:
            del self._queues[waiter.tenant]
