"""How much is drawn at once, and who is next: a bounded queue that is fair to tenants."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from bonbon.errors import Overloaded


@dataclass(eq=False)
class _Waiter:
    """A request that waits. What becomes of it is noted here, so it does not matter whether its task still listens."""

    tenant: str
    tokens: int
    start: float
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    inside: bool = False


class Admission:
    """Lets requests in by the tokens that may be drawn for them: candidates times max_tokens.

    Tenants that wait get equal shares of tokens (start-time fair queueing, Goyal, Vin and Cheng 1996), each tenant's
    requests in order. A request that is larger than the capacity is let in alone. When too many wait, the newest of
    the tenant with most waiting has to go.

    Args:
        capacity: tokens of all requests that are let in.
        waiting: requests that may wait.
        patience: seconds that one waits.
    """

    def __init__(self, capacity: int, *, waiting: int, patience: float) -> None:
        self.capacity, self.most_waiting, self.patience = capacity, waiting, patience
        self.in_flight = 0
        self._queues: dict[str, deque[_Waiter]] = {}
        self._virtual_time = 0.0
        self._finish: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def admit(self, tenant: str, tokens: int) -> AsyncIterator[None]:
        """The block runs when it is this request's turn. Raises Overloaded when that is not soon enough."""
        await self._enter(tenant, tokens)
        try:
            yield
        finally:
            self.in_flight -= tokens
            self._let_in()

    async def _enter(self, tenant: str, tokens: int) -> None:
        if not self._queues and self._fits(tokens):
            self._count(tenant, tokens)
            return
        self._make_room(tenant)
        waiter = _Waiter(tenant, tokens, self._start(tenant, tokens))
        self._queues.setdefault(tenant, deque()).append(waiter)
        self._let_in()
        decided = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.patience):
                    await waiter.decided.wait()
                    decided = True
        finally:
            if not decided:
                self._withdraw(waiter)
        if not decided:
            raise Overloaded("the service is at capacity: the request has waited too long; try again later")
        if not waiter.inside:
            raise Overloaded("the service is at capacity; try again later")

    def _make_room(self, tenant: str) -> None:
        if self.waiting < self.most_waiting:
            return
        longest = max(self._queues, key=lambda name: len(self._queues[name]))
        if longest == tenant or len(self._queues[longest]) <= len(self._queues.get(tenant, ())) + 1:
            raise Overloaded("the service is at capacity; try again later")
        newest = self._queues[longest][-1]
        self._give_up(newest)
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

    def _let_in(self) -> None:
        while self._queues:
            first = min((queue[0] for queue in self._queues.values()), key=lambda waiter: waiter.start)
            if not self._fits(first.tokens):
                return  # whoever is smaller waits, too: else the large would wait for ever
            self._remove(first)
            self._virtual_time = first.start
            self.in_flight += first.tokens
            first.inside = True
            first.decided.set()
        if self.in_flight == 0:
            self._finish.clear()
            self._virtual_time = 0.0

    def _withdraw(self, waiter: _Waiter) -> None:
        """The request is not waited for any more: it leaves the queue, or gives back what it was given meanwhile."""
        if waiter.inside:
            self.in_flight -= waiter.tokens
        elif not waiter.decided.is_set():
            self._give_up(waiter)
        self._let_in()

    def _give_up(self, waiter: _Waiter) -> None:
        self._remove(waiter)
        self._finish[waiter.tenant] -= waiter.tokens

    def _remove(self, waiter: _Waiter) -> None:
        queue = self._queues[waiter.tenant]
        queue.remove(waiter)
        if not queue:
            del self._queues[waiter.tenant]
