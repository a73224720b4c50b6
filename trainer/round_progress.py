"""Stores a round's progress in the database, where other processes can read it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from bonbon.errors import StoreError
from bonbon.registry.round_progress import CurvePoint, RoundStage, store_round_progress
from bonbon.store.database import Database
from trainer.training.metrics import read_metrics

log = structlog.get_logger(__name__)

SECONDS = 2.0
POINTS = 120


class ProgressReporter:
    """Reports the progress of one round. A report that fails is logged and never stops the round."""

    def __init__(self, database: Database, round_id: str, directory: Path, sampler: str, epochs: float) -> None:
        self.database, self.round_id, self.directory = database, round_id, directory
        self.sampler, self.epochs = sampler, epochs

    async def report(self, stage: RoundStage, *, version: str | None = None, outcome: str | None = None) -> None:
        """Reports that the round is at `stage`, with the training progress read from the run directory."""
        curve = await asyncio.to_thread(training_curve, self.directory)
        try:
            await store_round_progress(
                self.database,
                self.round_id,
                run=self.directory.name,
                sampler=self.sampler,
                stage=stage,
                epochs=self.epochs,
                curve=curve,
                version=version,
                outcome=outcome,
            )
        except StoreError as error:
            log.warning("the progress of the round could not be stored", error=str(error))

    @asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """Reports the progress periodically while the block trains, in this process or in others."""
        reporting = asyncio.create_task(self._report_training(), name="reporter")
        try:
            yield
        finally:
            reporting.cancel()
            (ended,) = await asyncio.gather(reporting, return_exceptions=True)
            if isinstance(ended, Exception):
                log.warning("the progress of the round could not be stored", error=str(ended))

    async def _report_training(self) -> None:
        while True:
            await self.report(RoundStage.TRAINING)
            await asyncio.sleep(SECONDS)


def training_curve(directory: Path) -> tuple[CurvePoint, ...]:
    """Returns at most `POINTS` of the reported steps, evenly spread and including the last one."""
    steps = [entry for entry in read_metrics(directory) if "loss" in entry]
    chosen = range(len(steps)) if len(steps) <= POINTS else _spread(len(steps))
    return tuple(
        CurvePoint(step["epoch"], step["loss"], step.get("margin"), step.get("target"))
        for step in map(steps.__getitem__, chosen)
    )


def _spread(count: int) -> list[int]:
    return [round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)]
