"""The savings of a distilled champion over all gateways, including audits, and how many audits they allow."""

from pathlib import Path

import pytest

from bonbon.pairs.live.savings import Savings, TokenCounts, add_savings, read_savings
from bonbon.rewards.fake_reward import FakeReward
from bonbon.store.database import Database
from service.lifecycle.audit_rate import LEAST, audit_rate
from tests.support.service.running_service import BASE, Running, WatchedEngine, running, settings_in
from tests.support.service.service_metrics import metric_of


async def test_what_gateways_count_is_added(database: Database) -> None:
    await add_savings(database, "v1", 8, TokenCounts(answers=3, answer_tokens=30))
    await add_savings(database, "v1", 4, TokenCounts(answers=1, answer_tokens=7))
    both = await add_savings(
        database, "v1", 8, TokenCounts(answers=7, answer_tokens=70, audits=2, audit_tokens=40, best_of_n_tokens=100)
    )
    assert both.drawn == TokenCounts(answers=10, answer_tokens=100, audits=2, audit_tokens=40, best_of_n_tokens=100)
    assert both.tokens_per_answer == pytest.approx(14)
    assert both.best_of_n_tokens_per_answer == pytest.approx(50)
    assert both.saved_share == pytest.approx(1 - 14 / 50)
    assert both.saved_tokens == 10 * (50 - 14)
    assert [(s.version, s.n) for s in await read_savings(database)] == [("v1", 8), ("v1", 4)]


async def test_nothing_is_said_to_be_saved_before_there_was_an_audit(database: Database) -> None:
    saved = await add_savings(database, "v1", 8, TokenCounts(answers=3, answer_tokens=30))
    assert (saved.tokens_per_answer, saved.best_of_n_tokens_per_answer) == (10, None)
    assert (saved.saved_share, saved.saved_tokens) == (None, None)


@pytest.mark.parametrize(
    ("k", "n", "rate"),
    [(1, 8, 0.05 * 7 / 16), (4, 8, 0.05 * 4 / 8), (8, 8, LEAST), (1, 2, 0.05 * 1 / 4)],
)
def test_before_anything_is_measured_draws_decide_how_many_audits_there_are(k: int, n: int, rate: float) -> None:
    assert audit_rate(0.05, k=k, n=n, savings=None) == pytest.approx(rate)


async def test_what_audits_cost_is_within_the_budget_of_what_is_saved(database: Database) -> None:
    drawn = TokenCounts(answers=1000, answer_tokens=44_000, audits=50, audit_tokens=30_000, best_of_n_tokens=12_000)
    saved: Savings = await add_savings(database, "v1", 8, drawn)
    rate = audit_rate(0.05, k=1, n=8, savings=saved)
    audit, answer, best_of_n = 30_000 / 50, 44, 12_000 / 50
    assert rate * audit == pytest.approx(0.05 * (best_of_n - answer))
    assert audit_rate(0.0, k=1, n=8, savings=saved) == 0
    wasteful = await add_savings(database, "v2", 8, TokenCounts(1000, 300_000, 50, 30_000, 12_000))
    assert audit_rate(0.05, k=7, n=8, savings=wasteful) == LEAST


async def champion_answers(service: Running, answers: int) -> None:
    for _ in range(answers):
        assert (await service.ask()).status_code == 200
    await service.state.audits.idle()
    await service.state.savings.write()


async def test_the_service_says_what_its_champion_saves(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, audit_fraction=1.0), engine=WatchedEngine()) as service:
        await champion_answers(service, 2)  # best-of-n of the base saves nothing, and is not counted
        assert (await service.client.get("/admin/win-rate")).json()["savings"] is None
        name = (await service.promoted(1, k=1)).name
        await service.state.swapper.converge()
        await champion_answers(service, 5)
        await service.ask(n=2)  # asks for its own number of draws
        await service.ask(temperature=0)
        await service.ask(BASE)
        await champion_answers(service, 0)
        shown = (await service.client.get("/admin/win-rate")).json()
        saved = shown["savings"]
        assert (saved["n"], saved["answers"], shown["audit_fraction"]) == (4, 5, 1.0)
        assert saved["audits"] == 6  # what asks for its own number is audited, too
        # An audit draws the base four times, and the champion four times for the next round.
        assert 0 < saved["best_of_n_tokens"] < saved["audit_tokens"]
        ours = (saved["answer_tokens"] + saved["audit_tokens"]) / 5
        assert saved["tokens_per_answer"] == pytest.approx(ours)
        assert saved["saved_share"] == pytest.approx(1 - ours / (saved["best_of_n_tokens"] / 6))
        scrape = (await service.client.get("/metrics")).text
        labels = f'model_version="{name}"'
        assert metric_of(scrape, f"bonbon_champion_saved_ratio{{{labels}}}") == pytest.approx(saved["saved_share"])
        assert metric_of(scrape, f"bonbon_audit_tokens_drawn_total{{{labels}}}") >= saved["audit_tokens"]
    async with running(settings_in(tmp_path, audit_fraction=0.0), engine=WatchedEngine()) as service:
        assert (await service.client.get("/admin/win-rate")).json()["savings"] == saved


async def test_what_audits_draw_in_vain_is_counted_and_what_they_draw_for_greedy_answers(tmp_path: Path) -> None:
    reward = FakeReward()
    async with running(settings_in(tmp_path, audit_fraction=1.0), engine=WatchedEngine(), reward=reward) as service:
        name = (await service.promoted(1, k=1)).name
        await service.state.swapper.converge()
        drawn = f'bonbon_audit_tokens_drawn_total{{model_version="{name}"}}'
        reward.failure = "it is down"
        await champion_answers(service, 2)
        savings = (await service.client.get("/admin/win-rate")).json()["savings"]
        assert savings["audit_tokens"] > 0
        assert metric_of((await service.client.get("/metrics")).text, drawn) == savings["audit_tokens"]
        reward.failure = None
        await service.ask(temperature=0)
        await champion_answers(service, 0)
        assert (await service.client.get("/admin/win-rate")).json()["savings"] == savings
        assert metric_of((await service.client.get("/metrics")).text, drawn) > savings["audit_tokens"]


async def test_by_default_the_budget_decides_how_many_answers_are_audited(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, audit_fraction=None), engine=WatchedEngine()) as service:
        scrape = (await service.client.get("/metrics")).text
        assert "bonbon_audit_ratio 0.0" in scrape.splitlines(), "the base is not audited"
        await service.promoted(1, k=2)
        await service.state.swapper.converge()
        shown = (await service.client.get("/admin/win-rate")).json()
        assert shown["audit_fraction"] == pytest.approx(0.05 * 2 / 4)
