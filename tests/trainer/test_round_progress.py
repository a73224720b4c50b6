"""Tests of a round's progress, reported to the database from the run directory."""

import asyncio
import json
from pathlib import Path

from structlog.testing import capture_logs

from bonbon.registry.round_progress import RoundStage, read_rounds
from bonbon.store.database import Database
from trainer.round_progress import POINTS, ProgressReporter, training_curve


def write_steps(directory: Path, count: int) -> None:
    directory.mkdir(exist_ok=True)
    lines = [{"step": 0, "epoch": 0, "held_out_margin": 0.1}]
    lines += [
        {"step": step, "epoch": step / 100, "loss": 2.0 - step / 1000, "margin": step, "target": 18.15}
        for step in range(1, count + 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_curve_is_of_steps_and_keeps_its_ends(tmp_path: Path) -> None:
    assert training_curve(tmp_path) == ()
    for count in (1, POINTS, POINTS + 1, 1000):
        write_steps(tmp_path, count)
        curve = training_curve(tmp_path)
        assert len(curve) == min(count, POINTS)
        assert (curve[0].margin, curve[-1].margin) == (1, count)
        assert [point.epoch for point in curve] == sorted({point.epoch for point in curve})


async def test_a_round_is_told_while_it_trains_and_how_it_ended(database: Database, tmp_path: Path) -> None:
    run = tmp_path / "round-1"
    write_steps(run, 3)
    reporter = ProgressReporter(database, "id", run, "tiny", 3.0)
    async with reporter.training():
        async with asyncio.timeout(30):
            while not (rounds := await read_rounds(database)):
                await asyncio.sleep(0.01)
    assert (rounds[0].stage, rounds[0].epoch, rounds[0].epochs, rounds[0].ended) == ("training", 0.03, 3.0, False)
    write_steps(run, 300)
    await reporter.report(RoundStage.FINISHED, version="tiny-bonbon-0001", outcome="promoted")
    (ended,) = await read_rounds(database)
    assert (ended.run, ended.sampler, ended.version, ended.outcome) == (
        "round-1",
        "tiny",
        "tiny-bonbon-0001",
        "promoted",
    )
    assert ended.ended
    assert ended.epoch == 3.0
    assert ended.started == rounds[0].started < ended.updated


async def test_a_database_that_is_away_does_not_stop_the_round(tmp_path: Path) -> None:
    away = Database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}")
    with capture_logs() as lines:
        async with ProgressReporter(away, "id", tmp_path, "tiny", 3.0).training():
            await asyncio.sleep(0.05)
        await ProgressReporter(away, "id", tmp_path, "tiny", 3.0).report(RoundStage.EVALUATING)
    assert {line["event"] for line in lines} == {"the progress of the round could not be stored"}


async def test_metrics_that_cannot_be_read_do_not_stop_the_round(database: Database, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("no JSON\n")
    with capture_logs() as lines:
        async with ProgressReporter(database, "id", tmp_path, "tiny", 3.0).training():
            await asyncio.sleep(0.2)
    assert [line["event"] for line in lines] == ["the progress of the round could not be stored"]
