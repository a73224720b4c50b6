"""How far each round of training is, said by its trainer and read by whoever watches."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import select, update

from bonbon.store.database import Database
from bonbon.store.tables import rounds

PROMOTED, REFUSED, NOT_PROMOTED = "promoted", "the gate refused it", "not to be promoted by itself"
"""Outcomes of a round; others say why its version was not promoted."""


class RoundStage(StrEnum):
    """What a round is at, or how it ended."""

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
    """A round in the run directory `run`, trained from `sampler`: `epoch` of `epochs` are done.

    `version` is what it registered, `outcome` what became of it, once it has ended.
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


async def tell_round(
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
    """Store how far the round `id` is, in the place of what was told before."""
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
    """The newest rounds, newest first."""
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
