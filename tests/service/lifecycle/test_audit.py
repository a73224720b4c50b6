"""Audits: which answers they select, what they store, and that they never fail a request."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from bonbon.best_of_n import BestOfN
from bonbon.engines.engine import Sampling, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.pairs.group_records import Group
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_stats import stats
from bonbon.prompt import Prompt
from bonbon.registry.registry import Registry
from bonbon.rewards.fake_reward import FakeReward
from bonbon.store.database import Database, open_database
from bonbon.store.tables import comparisons, groups
from service.lifecycle.audit import Audits
from service.lifecycle.savings import SavingsCounter
from service.metrics.process_metrics import Metrics
from service.routing.fallback import Fallback
from service.routing.router import Loaded, Router, Routes

BASE, CHAMPION = "fake", "fake-bonbon-0001"
NOW = datetime.now(UTC)
DISTILLED = Routes(BASE, CHAMPION, {BASE: Loaded(BASE, NOW), CHAMPION: Loaded(CHAMPION, NOW, BASE)})
PROMPT = Prompt.user("Where is my order?")


class Bench:
    """Audits on the fakes and a real database."""

    def __init__(self, database: Database, pair_log: PairLog) -> None:
        self.database, self.pair_log = database, pair_log
        self.engine, self.reward, self.metrics = FakeEngine(BASE), FakeReward(), Metrics()
        self.best_of_n = BestOfN(self.engine, self.reward)
        self.router = Router(BASE, alias="bonbon", n=4)
        self.router.publish(DISTILLED)
        self.savings = SavingsCounter(database, self.router, self.metrics)
        self.floor = Fallback(Registry(database, Path("versions")), self.router, self.metrics, 0.0)

    def audits(self, *, fraction: float | None = 1.0, waiting: int = 16) -> Audits:
        return Audits(
            self.best_of_n,
            self.pair_log,
            self.router,
            self.metrics,
            self.floor,
            self.savings,
            audit_fraction=fraction,
            audit_budget=0.05,
            n=4,
            audit_queue=waiting,
            rng=random.Random(0),
        )

    async def answered(self, version: str = CHAMPION, sampling: Sampling = Sampling(seed=1)) -> Group:
        answer = await self.best_of_n(PROMPT, 1, version=version, sampling=sampling)
        group = replace(answer.group, user="ada", request_id="req_1")
        await self.pair_log.append(group)
        return group

    async def rows(self, table: object) -> list[dict[str, object]]:
        async with self.database.read() as connection:
            return [dict(row) for row in (await connection.execute(select(table))).mappings()]  # type: ignore[call-overload]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        pair_log = PairLog(database)
        await pair_log.start()
        bench = Bench(database, pair_log)
        await bench.engine.start()
        await bench.engine.load(VersionFiles(CHAMPION, VersionKind.ADAPTER, tmp_path))
        yield bench
        await pair_log.stop()


async def run(audits: Audits, *offered: Group) -> None:
    await audits.start()
    for group in offered:
        audits.offer(group)
    await asyncio.wait_for(audits.idle(), 10)
    await audits.stop()


async def test_an_audit_stores_a_comparison_and_a_group_of_the_champion(bench: Bench) -> None:
    group = await bench.answered()
    await run(bench.audits(), group)
    comparison, with_best = await bench.rows(comparisons)
    assert with_best["opponent"] == "best-of-4"
    assert with_best["opponent_reward"] >= comparison["opponent_reward"]  # type: ignore[operator]
    assert comparison["group_id"] == group.id
    assert (comparison["version"], comparison["opponent"]) == (CHAMPION, BASE)
    assert comparison["reward"] == bench.reward.function(PROMPT, group.candidates[0].text)
    outcome = {True: "win", False: "loss"}[comparison["reward"] > comparison["opponent_reward"]]  # type: ignore[operator]
    labels = {"champion": CHAMPION, "opponent": BASE, "reward": "fake"}
    assert bench.count("bonbon_comparisons_total", outcome=outcome, **labels) == 1
    audited = [row for row in await bench.rows(groups) if row["origin"] == "audit"]
    assert [(row["version"], row["n"], row["end_user"]) for row in audited] == [(CHAMPION, 4, "ada")]
    logged = await bench.pair_log.group(str(audited[0]["id"]))
    assert logged is not None
    assert logged.unclean is None
    assert logged.served == ()
    assert logged.prompt == group.prompt
    assert len({candidate.text for candidate in logged.candidates}) > 1  # the request's seed is not reused
    assert bench.router.in_flight == 0


async def test_what_is_compared_is_the_best_of_the_draws_that_the_champion_answers_from(bench: Bench) -> None:
    needs_2 = replace(DISTILLED, loaded={**DISTILLED.loaded, CHAMPION: replace(DISTILLED.loaded[CHAMPION], k=2)})
    bench.router.publish(needs_2)
    answer = await bench.best_of_n(PROMPT, 4, version=CHAMPION, sampling=Sampling(seed=1))
    await bench.pair_log.append(answer.group)
    single = await bench.answered()
    await run(bench.audits(), answer.group, single)
    rows = await bench.rows(comparisons)
    assert {row["group_id"] for row in rows} == {answer.group.id}  # one draw is not what the alias answers with
    best_of_2 = max(bench.reward.function(PROMPT, candidate.text) for candidate in answer.group.candidates[:2])
    assert {row["reward"] for row in rows} == {best_of_2}
    assert [row["origin"] for row in await bench.rows(groups)] == ["request", "request"]  # such groups train already


async def test_a_reward_reads_the_text_of_a_prompt_of_token_ids(bench: Bench) -> None:
    seen: set[Prompt] = set()

    def score(prompt: Prompt, text: str) -> float:
        seen.add(prompt)
        return len(text)

    bench.reward.function = score
    answer = await bench.best_of_n(Prompt(token_ids=(0, 3)), 1, version=CHAMPION, sampling=Sampling(seed=1))
    await bench.pair_log.append(answer.group)
    await run(bench.audits(), answer.group)
    assert len(await bench.rows(comparisons)) == 2
    assert seen == {Prompt(text="please order")}


async def test_equal_answers_are_ties(bench: Bench) -> None:
    greedy = Sampling(temperature=0)
    await run(bench.audits(), await bench.answered(sampling=greedy))
    labels = {"champion": CHAMPION, "opponent": BASE, "reward": "fake"}
    assert bench.count("bonbon_comparisons_total", outcome="tie", **labels) == 1
    # Best-of-n of equal draws is one draw, and a greedy group cannot be trained on, so none is drawn.
    assert len(await bench.rows(comparisons)) == 1
    assert [row["origin"] for row in await bench.rows(groups)] == ["request"]


async def test_the_fraction_is_kept(bench: Bench) -> None:
    group = await bench.answered()
    offered = [replace(group) for _ in range(2000)]
    audits = bench.audits(fraction=0.1, waiting=2000)
    for each in offered:
        audits.offer(each)
    assert audits.waiting == pytest.approx(200, abs=45)  # over three standard deviations
    assert bench.audits(fraction=0.0).waiting == 0


async def test_only_whole_answers_of_a_distilled_champion_are_audited(bench: Bench) -> None:
    audits = bench.audits()
    group = await bench.answered()
    aborted = replace(group, candidates=(replace(group.candidates[0], finish_reason="abort"),))
    for other in (await bench.answered(BASE), replace(group, version="fake-bonbon-0009"), aborted):
        audits.offer(other)
    assert audits.waiting == 0
    bench.router.publish(Routes(BASE, BASE, DISTILLED.loaded))
    audits.offer(await bench.answered(BASE))
    assert audits.waiting == 0


async def test_a_full_queue_drops_and_counts(bench: Bench) -> None:
    audits, group = bench.audits(waiting=2), await bench.answered()
    for _ in range(5):
        audits.offer(group)
    assert audits.waiting == 2
    assert bench.count("bonbon_audits_dropped_total", reason="full") == 3


async def test_a_failing_reward_is_counted_and_stores_nothing(bench: Bench) -> None:
    group = await bench.answered()
    bench.reward.failure = "down"
    await run(bench.audits(), group)
    assert bench.count("bonbon_audits_dropped_total", reason="degraded") == 1
    assert await bench.rows(comparisons) == []
    assert (await stats(bench.database)).groups == 1


async def test_a_reward_that_fails_between_comparison_and_group_leaves_no_group(bench: Bench) -> None:
    group = await bench.answered()
    score = bench.reward.function
    bench.reward.function = lambda prompt, text: score(prompt, text) if len(bench.reward.calls) == 1 else float("nan")
    await run(bench.audits(), group)
    assert len(await bench.rows(comparisons)) == 2
    assert [row["origin"] for row in await bench.rows(groups)] == ["request"]
    assert bench.count("bonbon_degraded_total", origin="audit", reward="fake", reason="invalid") == 1


async def test_a_failed_audit_does_not_end_the_worker(bench: Bench) -> None:
    group = await bench.answered()
    audits = bench.audits()
    await audits.start()
    bench.engine.failure = "out of memory"
    audits.offer(group)
    await asyncio.wait_for(audits.idle(), 10)
    assert bench.count("bonbon_audits_dropped_total", reason="failed") == 1
    bench.engine.failure = None
    audits.offer(group)
    await asyncio.wait_for(audits.idle(), 10)
    await audits.stop()
    assert len(await bench.rows(comparisons)) == 2


async def test_a_version_unloaded_before_its_audit_is_counted(bench: Bench) -> None:
    audits, group = bench.audits(), await bench.answered()
    audits.offer(group)
    bench.router.publish(Routes(BASE, BASE, {BASE: DISTILLED.loaded[BASE]}))
    await run(audits)
    assert bench.count("bonbon_audits_dropped_total", reason="gone") == 1


async def test_an_audit_holds_its_versions_and_stopping_lets_them_go(bench: Bench) -> None:
    bench.engine = FakeEngine(BASE, delay=0.05)
    await bench.engine.start()
    bench.best_of_n.engine = bench.engine
    group = await bench.answered(BASE)
    audits = bench.audits()
    await audits.start()
    audits.offer(replace(group, version=CHAMPION))
    await asyncio.sleep(0.01)
    assert bench.router.references(CHAMPION) == bench.router.references(BASE) == 1
    await audits.stop()
    assert bench.router.in_flight == 0
    assert bench.engine.running == 0


async def test_an_answer_chosen_from_several_is_audited_by_its_first_draw(bench: Bench) -> None:
    answer = await bench.best_of_n(PROMPT, 4, version=CHAMPION, sampling=Sampling(seed=1))
    await bench.pair_log.append(answer.group)
    await run(bench.audits(), answer.group)
    rewards = {row["reward"] for row in await bench.rows(comparisons)}
    assert rewards == {bench.reward.function(PROMPT, answer.group.candidates[0].text)}
    assert [row["origin"] for row in await bench.rows(groups)] == ["request"]  # it is such a group itself
