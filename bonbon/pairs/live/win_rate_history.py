"""Reconstructs the history of the live win rate from the audits' comparisons in the log."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, select

from bonbon.store.database import Database
from bonbon.store.tables import comparisons
from bonbon.theory import RollingSequence

POINTS = 150


@dataclass(frozen=True, slots=True)
class WinRatePoint:
    """The win rate over the newest comparisons after `count` of them, ties as half, with its 95 % band.

    The band covers the win rate at all points at once with a probability of 95 %.
    """

    count: int
    time: datetime
    win_rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class WinRateHistory:
    """History of the best of `k` draws of `version` against `opponent` at `points` of the newest comparisons."""

    version: str
    opponent: str
    k: int
    wins: int
    ties: int
    losses: int
    points: tuple[WinRatePoint, ...]


async def read_win_rate_history(
    database: Database, *, version: str, opponent: str, newest: int = 2000
) -> WinRateHistory:
    """Returns the newest comparisons of `version` with `opponent`, with the reward and the k of the last one."""
    this = (comparisons.c.version == version, comparisons.c.opponent == opponent)
    last = select(comparisons.c.reward_name, comparisons.c.reward_version, comparisons.c.k).where(*this)
    won = comparisons.c.reward - comparisons.c.opponent_reward
    outcome = case((won > 0, 1.0), (won == 0, 0.5), else_=0.0)
    async with database.read(bulk=True) as connection:
        newest_one = (await connection.execute(last.order_by(comparisons.c.id.desc()).limit(1))).one_or_none()
        if newest_one is None:
            return WinRateHistory(version, opponent, 1, 0, 0, 0, ())
        name, reward_version, k = newest_one
        judged = (
            comparisons.c.reward_name == name,
            comparisons.c.reward_version == reward_version,
            comparisons.c.k == k,
        )
        query = select(comparisons.c.time, outcome).where(*this, *judged)
        rows = (await connection.execute(query.order_by(comparisons.c.id.desc()).limit(newest))).all()
    shares = [float(share) for _, share in reversed(rows)]
    times = [time for time, _ in reversed(rows)]
    return WinRateHistory(
        version,
        opponent,
        k,
        wins=shares.count(1.0),
        ties=shares.count(0.5),
        losses=shares.count(0.0),
        points=tuple(_points(shares, times)),
    )


def _points(shares: list[float], times: list[datetime]) -> list[WinRatePoint]:
    sequence, points = RollingSequence(), []
    step = max(1, len(shares) // POINTS)
    for count, (share, time) in enumerate(zip(shares, times, strict=True), 1):
        band = sequence.add(share)
        if count % step == 0 or count == len(shares):
            points.append(WinRatePoint(count, time, sequence.mean, band.low, band.high))
    return points
