"""Stores the progress of each round of training, written by its trainer and read by other processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import select, update

from bonbon.store.database import Database
from bonbon.store.tables import rounds

PROMOTED, REFUSED, NOT_PROMOTED = "promoted", "the gate refused it", "automatic promotion is off"
"""Outcomes of a round. Any other outcome says why the version was not promoted."""


class RoundStage(StrEnum):
    """The stage that a round has reached, or how it ended."""

    SNAPSHOT = "snapshot"
    TRAINING = "training"
    EVALUATING = "evaluating"
    FINISHED = "finished"
    FAILED = "failed"


class CurvePoint(NamedTuple):
    """Loss and margin (nats, with its target) of the training after `epoch` epochs."""

    epoch: float
    loss: float | None
    margin: float | None
    target: float | None


@dataclass(frozen=True, slots=True)
class RoundProgress:
    """The progress of the round in the run directory `run`, trained from `sampler`: `epoch` of `epochs` are done.

    `curve` has points of epoch, loss, margin in nats and the margin's target. `version` is the version that it
    registered, and `outcome` its result once it has ended.
    """

    id: str
    run: str
    sampler: str
    stage: RoundStage
    epoch: float
    epochs: float
    curve: tuple[CurvePoint, ...]
    version: str | None
    outcome: str | None
    started: datetime
    updated: datetime

    @property
    def ended(self) -> bool:
        return self.stage in (RoundStage.FINISHED, RoundStage.FAILED)


async def store_round_progress(
    database: Database,
    id: str,
    *,
    run: str,
    sampler: str,
    stage: RoundStage,
    epochs: float,
    curve: Sequence[CurvePoint],
    version: str | None = None,
    outcome: str | None = None,
) -> None:
    """Stores the progress of the round `id`, replacing the earlier one."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "run": run,
        "sampler": sampler,
        "stage": stage,
        "epoch": curve[-1].epoch if curve else 0.0,
        "epochs": epochs,
        "curve": [list(point) for point in curve],
        "version": version,
        "outcome": outcome,
        "updated": now,
    }
    async with database.write() as connection:
        await connection.execute(database.insert_new(rounds).values(id=id, started=now, **values))
        await connection.execute(update(rounds).where(rounds.c.id == id).values(**values))


async def read_rounds(database: Database, limit: int = 10) -> tuple[RoundProgress, ...]:
    """Returns the newest rounds, newest first."""
    query = select(rounds).order_by(rounds.c.started.desc(), rounds.c.id.desc()).limit(limit)
    async with database.read() as connection:
        rows = (await connection.execute(query)).mappings().all()
    return tuple(
        RoundProgress(
            **{
                **row,
                "stage": RoundStage(row["stage"]),
                "curve": tuple(CurvePoint(*point) for point in row["curve"]),
            }
        )
        for row in rows
    )
