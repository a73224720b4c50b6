"""How much is drawn at once, and who is next: a bounded queue that is fair to tenants."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bonbon.errors import Overloaded


@dataclass(eq=False)
class _Waiter:
    tenant: str
    tokens: int
    start: float
    turn: asyncio.Future[None]


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
        waiter = _Waiter(tenant, tokens, self._start(tenant, tokens), asyncio.get_running_loop().create_future())
        self._queues.setdefault(tenant, deque()).append(waiter)
        self._let_in()
        try:
            async with asyncio.timeout(self.patience):
                await waiter.turn
        except TimeoutError:
            self._forget(waiter)
            raise Overloaded("the service is at capacity: the request has waited too long; try again later") from None
        except asyncio.CancelledError:
            self._forget(waiter)
            raise

    def _make_room(self, tenant: str) -> None:
        if self.waiting < self.most_waiting:
            return
        longest = max(self._queues, key=lambda name: len(self._queues[name]))
        if longest == tenant or len(self._queues[longest]) <= len(self._queues.get(tenant, ())) + 1:
            raise Overloaded("the service is at capacity; try again later")
        newest = self._queues[longest][-1]
        self._give_up(newest)
        newest.turn.set_exception(Overloaded("the service is at capacity; try again later"))

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
            first.turn.set_result(None)
        if self.in_flight == 0:
            self._finish.clear()
            self._virtual_time = 0.0

    def _forget(self, waiter: _Waiter) -> None:
        """Its caller has gone: it no longer waits, or gives back what it was just given."""
        if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
            self.in_flight -= waiter.tokens
        elif waiter in self._queues.get(waiter.tenant, ()):
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
