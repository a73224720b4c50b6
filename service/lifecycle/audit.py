"""Audits: measures in the background, on live requests, how good the champion's answers are."""

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from bonbon.best_of_n import BestOfN
from bonbon.concurrency.shielded import end
from bonbon.engines.candidates import collect
from bonbon.engines.engine import DrawRequest
from bonbon.errors import RewardError, UnknownVersion
from bonbon.pairs.group_records import Comparison, Group, best_of
from bonbon.pairs.pair_log import PairLog
from service.lifecycle.audit_rate import audit_rate
from service.lifecycle.savings import SavingsCounter
from service.metrics.process_metrics import Metrics
from service.routing.fallback import Fallback
from service.routing.router import Router

log = structlog.get_logger(__name__)


class Audits:
    """Compares a share of the distilled champion's answers with the base, and logs groups for the next round.

    An audit (a) samples n candidates of the base with the request's own prompt and sampling, scores them together with
    the k candidates behind the answer, and stores how the best of those k compares with the base's first and best
    candidate; (b) if k is 1, samples n new candidates of the champion and logs them as a group of origin `audit`, so
    that the next round can train with the champion as its reference. Audits run one at a time, never fail a request,
    and hold the versions that they use.

    Args:
        fallback: Is notified of every change of a live win rate.
        savings: Counts the tokens that audits generate.
        audit_fraction: Share of answers to audit. With None, `audit_budget` determines the share.
        audit_budget: Maximum number of tokens that audits may generate, as a share of the tokens that answers save.
        n: Candidates of (a) and (b).
        audit_queue: Maximum number of waiting audits; further audits are dropped and counted.
        rng: Selects the answers to audit.
    """

    def __init__(
        self,
        best_of_n: BestOfN,
        pair_log: PairLog,
        router: Router,
        metrics: Metrics,
        fallback: Fallback,
        savings: SavingsCounter,
        *,
        audit_fraction: float | None,
        audit_budget: float,
        n: int,
        audit_queue: int,
        rng: random.Random | None = None,
    ) -> None:
        self.best_of_n, self.pair_log, self.router, self.metrics = best_of_n, pair_log, router, metrics
        self.fallback, self.savings = fallback, savings
        self.n = n
        self._fraction, self._budget = audit_fraction, audit_budget
        self._rng = rng or random.Random()
        self._queue: asyncio.Queue[tuple[Group, int]] = asyncio.Queue(audit_queue)
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to process the queue."""
        self._worker = asyncio.create_task(self._work(), name="audits")

    async def stop(self) -> None:
        """Aborts the running audit and drops the waiting ones."""
        if self._worker is not None:
            await end(self._worker)

    @property
    def waiting(self) -> int:
        """Number of audits that have not started."""
        return self._queue.qsize()

    @property
    def fraction(self) -> float:
        """Share of the champion's answers that is audited now; 0 while the champion is the base."""
        if not self.router.routes.distilled:
            return 0.0
        if self._fraction is not None:
            return self._fraction
        known = self.savings.known(self.router.champion)
        return audit_rate(self._budget, k=self.router.k, n=self.n, savings=known)

    async def idle(self) -> None:
        """Waits until every audit accepted so far has ended."""
        await self._queue.join()

    def offer(self, group: Group) -> None:
        """Audits an answered and logged group with probability `fraction`; returns at once.

        Only complete answers of a distilled champion with at least as many candidates as the alias samples are audited.
        The caller leaves out groups that must not be stored.
        """
        routes, k = self.router.routes, self.router.k
        if not routes.distilled or group.version != routes.champion or group.n < k:
            return
        if any(candidate.finish_reason == "abort" for candidate in group.candidates[:k]):
            return
        if self._rng.random() >= self.fraction:
            return
        try:
            self._queue.put_nowait((group, k))
        except asyncio.QueueFull:
            self.metrics.audit_dropped("full")

    async def _work(self) -> None:
        while True:
            group, k = await self._queue.get()
            try:
                await self._audit(group, k)
            except UnknownVersion:
                self.metrics.audit_dropped("gone")
            except RewardError as error:
                self.metrics.audit_dropped("degraded")
                log.warning("audit degraded", version=group.version, error=str(error))
            except Exception:
                self.metrics.audit_dropped("failed")
                log.exception("audit failed", version=group.version)
            finally:
                self._queue.task_done()

    async def _audit(self, group: Group, k: int) -> None:
        await self.router.admitted()
        base = self.router.routes.base
        with self.router.hold(group.version), self.router.hold(base):
            await self._compare(group, base, k)
            if group.n == 1 and group.sampling.unmodified:
                await self._draw_group(group)

    async def _compare(self, group: Group, base: str, k: int) -> None:
        sampling = replace(group.sampling, seed=None, top_logprobs=0)
        n = 1 if sampling.temperature == 0 else self.n  # greedy candidates are all the same
        drawn = await collect(self.best_of_n.engine, DrawRequest(group.prompt, base, n, sampling, salt=group.salt))
        self.savings.audit_drew(group, drawn.token_count, best_of_n=True)
        # Only the first k candidates, from which the alias answers, however many the request asked for.
        own = [candidate.text for candidate in group.candidates[:k]]
        rewards = await self.best_of_n.score(drawn.readable, [*own, *(draw.written for draw in drawn.draws)])
        reward, opposed = max(rewards[: len(own)]), rewards[len(own) :]
        opponents = {base: opposed[0]} if n == 1 else {base: opposed[0], best_of(n): max(opposed)}
        for opponent, opponent_reward in opponents.items():
            comparison = Comparison(
                group_id=group.id,
                time=datetime.now(UTC),
                version=group.version,
                opponent=opponent,
                reward_name=self.best_of_n.reward.name,
                reward_version=self.best_of_n.reward.version,
                reward=reward,
                opponent_reward=opponent_reward,
                k=k,
            )
            live = await self.pair_log.append_comparison(comparison)
            self.metrics.compared(comparison)
            await self.fallback.check(live)

    async def _draw_group(self, group: Group) -> None:
        sampling = replace(group.sampling, seed=None, top_logprobs=0)
        answer = await self.best_of_n(
            group.prompt, self.n, version=group.version, sampling=sampling, keep=0, salt=group.salt
        )
        drawn = replace(answer.group, origin="audit", tenant=group.tenant, user=group.user, request_id=group.request_id)
        self.savings.audit_drew(group, drawn.drawn_tokens, best_of_n=False)
        if answer.failure is not None:
            self.metrics.degraded(drawn, answer.failure)
            raise answer.failure
        await self.pair_log.append(drawn)
        self.metrics.logged(drawn)
