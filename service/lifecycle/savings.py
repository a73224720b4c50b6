"""Counts the tokens that distilled champions generate, so that the database shows what they save."""

import asyncio

import structlog

from bonbon.concurrency.shielded import end
from bonbon.errors import StoreError
from bonbon.pairs.group_records import Group
from bonbon.pairs.live.savings import Savings, TokenCounts, add_savings
from bonbon.store.database import Database
from service.metrics.process_metrics import Metrics
from service.routing.router import Asked, Route, Router

log = structlog.get_logger(__name__)

PERIOD = 5.0
"""Seconds between writes to the database. A process that is killed loses the counts of that period."""


class SavingsCounter:
    """Counts answers and audits of distilled champions, and adds the counts to the database every `period` seconds.

    Answers to requests that set their own number of candidates, or a temperature of 0, are not counted, because
    best-of-n of the base would not have generated more for them.
    """

    def __init__(self, database: Database, router: Router, metrics: Metrics, *, period: float = PERIOD) -> None:
        self.database, self.router, self.metrics, self.period = database, router, metrics, period
        self._new: dict[str, TokenCounts] = {}
        self._known: dict[str, Savings] = {}
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to write the counts periodically."""
        self._worker = asyncio.create_task(self._work(), name="savings")

    async def stop(self) -> None:
        """Stops, and writes the remaining counts if the database is available."""
        if self._worker is not None:
            await end(self._worker)
        await self._write()

    def answered(self, route: Route, group: Group) -> None:
        """Counts an answer."""
        routes = self.router.routes
        if route.asked is not Asked.ALIAS or not routes.distilled or route.version != routes.champion:
            return
        if group.n == self.router.k and group.sampling.temperature > 0:
            self._add(group.version, TokenCounts(answers=1, answer_tokens=group.drawn_tokens))

    def audit_drew(self, group: Group, count: int, *, best_of_n: bool) -> None:
        """Counts `count` tokens that an audit of the answer `group` generated.

        Args:
            best_of_n: Whether they belong to the n candidates of the base that every audit samples.
        """
        self.metrics.audit_drew(group.version, count)
        if group.sampling.temperature > 0:
            audits, best_of_n_tokens = (1, count) if best_of_n else (0, 0)
            self._add(group.version, TokenCounts(audits=audits, audit_tokens=count, best_of_n_tokens=best_of_n_tokens))

    def known(self, version: str) -> Savings | None:
        """Returns the counts of `version` over all gateways at the time of the last write."""
        return self._known.get(version)

    async def write(self) -> None:
        """Writes the new counts.

        Raises:
            StoreError: The database is not available. The counts are kept.
        """
        for version in list(self._new):
            drawn = self._new.pop(version)
            try:
                self._known[version] = await add_savings(self.database, version, self.router.n, drawn)
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
            log.warning("cannot store the savings; retrying later", reason=str(error))
        except Exception:
            log.exception("cannot store the savings; retrying later")
