"""Counts what distilled champions draw, so that the database knows what they save."""

import asyncio
from contextlib import suppress

import structlog

from bonbon.errors import StoreError
from bonbon.pairs.group_records import Group
from bonbon.pairs.live.savings import Savings, TokenCounts, add_savings
from bonbon.store.database import Database
from service.metrics.process_metrics import Metrics
from service.routing.router import Asked, Route, Router

log = structlog.get_logger(__name__)

PERIOD = 5.0
"""Seconds between writes to the database; a process that is killed loses the counts of that long."""


class SavingsCounter:
    """Counts answers and audits of distilled champions, and adds them up in the database every `period` seconds.

    Answers to requests that set their own number of draws, or a temperature of 0, are left out, because best-of-n of
    the base would have drawn no more for them.
    """

    def __init__(self, database: Database, serving: Router, metrics: Metrics, *, period: float = PERIOD) -> None:
        self.database, self.serving, self.metrics, self.period = database, serving, metrics, period
        self._new: dict[str, TokenCounts] = {}
        self._known: dict[str, Savings] = {}
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write what is counted."""
        self._worker = asyncio.create_task(self._work(), name="savings")

    async def stop(self) -> None:
        """Write what is left, if the database takes it."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        await self._write()

    def answered(self, plan: Route, group: Group) -> None:
        """An answer was drawn."""
        routes = self.serving.routes
        if plan.asked is not Asked.ALIAS or not routes.distilled or plan.version != routes.champion:
            return
        if group.n == self.serving.k and group.sampling.temperature > 0:
            self._add(group.version, TokenCounts(answers=1, answer_tokens=group.drawn_tokens))

    def audit_drew(self, group: Group, count: int, *, best_of_n: bool) -> None:
        """An audit of the answer `group` drew `count` tokens.

        Args:
            best_of_n: they are those of the n draws of the base, which every audit makes.
        """
        self.metrics.audit_drew(group.version, count)
        if group.sampling.temperature > 0:
            audits, best_of_n_tokens = (1, count) if best_of_n else (0, 0)
            self._add(group.version, TokenCounts(audits=audits, audit_tokens=count, best_of_n_tokens=best_of_n_tokens))

    def known(self, version: str) -> Savings | None:
        """What all gateways together had counted of `version` when this one last wrote."""
        return self._known.get(version)

    async def write(self) -> None:
        """Write what was counted since the last time. Raises StoreError; what was not written is kept."""
        for version in list(self._new):
            drawn = self._new.pop(version)
            try:
                self._known[version] = await add_savings(self.database, version, self.serving.n, drawn)
            except BaseException:
                self._add(version, drawn)
                raise

    def _add(self, version: str, drawn: TokenCounts) -> None:
        self._new[version] = self._new.get(version, TokenCounts()) + drawn

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(self.period)
            await self._write()

    async def _write(self) -> None:
        try:
            await self.write()
        except StoreError as error:
            log.warning("savings cannot be stored now; they are kept and stored later", reason=str(error))
        except Exception:
            log.exception("savings cannot be stored now; they are kept and stored later")
