"""Metrics: the generated reference, promtool's checks, values from the database, and series that end with their
version."""

import asyncio
import subprocess
from pathlib import Path

from bonbon.registry.registry import Registry
from bonbon.registry.round_progress import PROMOTED, REFUSED, CurvePoint, RoundStage, store_round_progress
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import GateSettings
from bonbon.store.database import Database
from service.metrics_reference import reference
from tests.support.models.evaluations import estimate, evaluation
from tests.support.needs import needs_promtool
from tests.support.paths import DOCS
from tests.support.service.running_service import BASE, WatchedEngine, new_version, running, settings_in
from trainer.evaluation.gate import judge


def test_the_reference_is_up_to_date() -> None:
    assert (DOCS / "metrics.md").read_text() == reference(), "make docs writes it anew"


async def scraped(tmp_path: Path) -> str:
    """Returns the metrics after requests of every kind."""
    async with running(settings_in(tmp_path, audit_fraction=1.0), engine=WatchedEngine()) as service:
        await service.ask()
        await evaluated(service.state.registry, 1)
        await tell(service.state.database, "1", RoundStage.FINISHED, outcome=REFUSED)
        await service.promoted(2)
        await service.state.swapper.converge()
        await service.ask(stream=True)
        await service.state.audits.idle()
        return (await service.client.get("/metrics")).text


async def tell(database: Database, id: str, stage: RoundStage, epoch: float = 3.0, outcome: str | None = None) -> None:
    curve = [CurvePoint(epoch, 0.5, 11.0, 18.15)]
    await store_round_progress(
        database, id, run=f"round-{id}", sampler=BASE, stage=stage, epochs=3.0, curve=curve, outcome=outcome
    )


async def evaluated(registry: Registry, weights: int) -> str:
    name = (await new_version(registry, weights)).name
    measured = evaluation(version=name, base=BASE, kl=estimate(float("nan")))
    await registry.record_evaluation(name, measured.to_dict())
    await registry.refuse(name, judge(measured, GateSettings()).to_dict())
    return name


async def approved(registry: Registry, weights: int) -> str:
    """According to this verdict the version answers with best-of-2, which saves 72.5 % of the tokens."""
    name = (await new_version(registry, weights)).name
    measured = evaluation(version=name, base=BASE)
    await registry.record_evaluation(name, measured.to_dict())
    await registry.approve(name, judge(measured, GateSettings()).to_dict())
    return name


@needs_promtool
async def test_promtool_finds_nothing_to_mend(tmp_path: Path) -> None:
    text = await scraped(tmp_path)
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_rounds_evaluations_and_verdicts_are_exposed(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        name = await evaluated(service.state.registry, 1)
        good = await approved(service.state.registry, 2)
        database = service.state.database
        await tell(database, "1", RoundStage.FINISHED, outcome=PROMOTED)
        await tell(database, "2", RoundStage.FINISHED, outcome=REFUSED)
        await tell(database, "3", RoundStage.FAILED, outcome="no pairs")
        await tell(database, "4", RoundStage.TRAINING, 0.75)
        lines = (await service.client.get("/metrics")).text.splitlines()
    for line in (
        "bonbon_database_up 1.0",
        'bonbon_rounds{outcome="running"} 1.0',
        'bonbon_rounds{outcome="refused"} 1.0',
        'bonbon_rounds{outcome="kept"} 0.0',
        "bonbon_rounds_unsuccessful_in_a_row 2.0",
        "bonbon_round_progress_ratio 0.25",
        "bonbon_training_margin_nats 11.0",
        f'bonbon_evaluation_win_rate{{bound="low",model_version="{name}",opponent="base"}} 0.82',
        f'bonbon_evaluation_best_of_k_win_rate{{bound="value",model_version="{name}",opponent="served"}} 0.42',
        f'bonbon_evaluation_best_of_k_win_rate{{bound="value",model_version="{good}",opponent="served"}} 0.53',
        f'bonbon_evaluation_best_of_k_win_rate{{bound="value",model_version="{good}",opponent="base"}} 0.92',
        f'bonbon_evaluation_gain_nats{{bound="value",model_version="{good}"}} 1.78',
        f'bonbon_gate_passed{{model_version="{name}"}} 0.0',
        f'bonbon_gate_k{{model_version="{name}"}} 1.0',
        f'bonbon_gate_k{{model_version="{good}"}} 2.0',
        f'bonbon_gate_saved_ratio{{model_version="{good}"}} 0.725',
        f'bonbon_gate_threshold{{check="win_rate",model_version="{name}"}} 0.5',
    ):
        assert line in lines
    # What is no finite number is left out.
    assert not any(line.startswith("bonbon_evaluation_kl_nats{") and name in line for line in lines)
    assert not any(line.startswith("bonbon_gate_saved_ratio{") and name in line for line in lines)
    assert f'bonbon_gate_value{{check="kl",model_version="{name}"}}' not in "\n".join(lines)


async def test_a_scrape_survives_the_database(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        await tell(service.state.database, "1", RoundStage.FINISHED, outcome=PROMOTED)
        assert 'bonbon_rounds{outcome="promoted"} 1.0' in (await service.client.get("/metrics")).text
        await service.state.swapper.stop()
        await service.state.database.stop()
        scrape = await service.client.get("/metrics")
    assert scrape.status_code == 200
    assert "bonbon_database_up 0.0" in scrape.text
    assert 'bonbon_rounds{outcome="promoted"} 1.0' in scrape.text  # what was known last


async def test_the_series_of_a_version_end_with_it(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, audit_fraction=1.0), engine=WatchedEngine()) as service:
        first = (await service.promoted(1)).name
        await service.state.swapper.converge()
        await service.ask()
        await service.state.audits.idle()
        scrape = (await service.client.get("/metrics")).text
        assert f'bonbon_answers_total{{asked="alias",model_version="{first}"}} 1.0' in scrape
        assert f'bonbon_win_rate_comparisons{{champion="{first}"' in scrape
        for weights in (2, 3):
            await service.promoted(weights)
            await service.state.swapper.converge()
        while first in service.state.swapper.draining:
            await asyncio.sleep(0.01)
        scrape = (await service.client.get("/metrics")).text
    assert f'"{first}"' not in scrape
    assert f'bonbon_answers_total{{asked="alias",model_version="{BASE}"}}' not in scrape  # it never answered


async def test_a_late_reward_is_counted(tmp_path: Path) -> None:
    settings, reward = settings_in(tmp_path, reward_deadline=0.01), FakeReward()
    async with running(settings, engine=WatchedEngine(), reward=reward) as service:
        reward.delay = 5.0
        assert (await service.ask()).json()["bonbon"]["degraded"]
        scrape = (await service.client.get("/metrics")).text
    assert 'bonbon_degraded_total{origin="request",reason="late",reward="fake"} 1.0' in scrape
