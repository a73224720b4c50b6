"""The live win rate: counts every audit's comparison over all gateways, also after groups are purged."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, insert, select, update

from bonbon.pairs.group_records import Comparison, Outcome
from bonbon.store.database import Database
from bonbon.store.tables import win_rates
from bonbon.store.transaction import Transaction
from bonbon.theory import Interval, RollingSequence

KEY = ("version", "opponent", "reward_name", "reward_version", "k")
SHARE = {Outcome.WIN: 1.0, Outcome.TIE: 0.5, Outcome.LOSS: 0.0}


@dataclass(frozen=True, slots=True)
class LiveWinRate:
    """The comparisons of the best of `k` draws of `version` with `opponent`, by one reward.

    `wins`, `ties` and `losses` count all comparisons ever made. `sequence` gives the band; see `RollingSequence`.
    """

    version: str
    opponent: str
    reward_name: str
    reward_version: str
    k: int
    wins: int
    ties: int
    losses: int
    sequence: RollingSequence
    updated: datetime

    @property
    def count(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float:
        """Win rate of the last `recent` comparisons, ties as half; .5 before the first."""
        return self.sequence.mean

    @property
    def recent(self) -> int:
        """Number of comparisons behind `win_rate` and `band`."""
        return self.sequence.count

    @property
    def band(self) -> Interval:
        """Interval that holds at all times simultaneously with a probability of at least 95 %."""
        return self.sequence.interval

    def is_below(self, minimum: float) -> bool:
        """Returns whether the win rate is known to be below `minimum` now."""
        return self.sequence.is_below(minimum)


async def count(database: Database, connection: Transaction, comparison: Comparison) -> LiveWinRate:
    """Counts `comparison` in the transaction that stores it. Gateways that count concurrently take turns."""
    await database.lock(connection, win_rates)
    key = {name: getattr(comparison, name) for name in KEY}
    this = and_(*(win_rates.c[name] == value for name, value in key.items()))
    row = (await connection.execute(select(win_rates).where(this))).mappings().one_or_none()
    before: Mapping[Any, Any] = {"wins": 0, "ties": 0, "losses": 0} if row is None else row
    sequence = RollingSequence() if row is None else RollingSequence.from_state(row["sequence"])
    sequence.add(SHARE[comparison.outcome])
    values = {
        "wins": before["wins"] + (comparison.outcome is Outcome.WIN),
        "ties": before["ties"] + (comparison.outcome is Outcome.TIE),
        "losses": before["losses"] + (comparison.outcome is Outcome.LOSS),
        "updated": datetime.now(UTC),
    }
    stored = {**values, "sequence": sequence.state()}
    statement = insert(win_rates).values(key | stored) if row is None else update(win_rates).where(this).values(stored)
    await connection.execute(statement)
    return LiveWinRate(**key, **values, sequence=sequence)


async def read_win_rates(database: Database, version: str | None = None) -> list[LiveWinRate]:
    """Returns every live win rate (of one version, if given), the most recently counted first."""
    query = select(win_rates).order_by(win_rates.c.updated.desc(), win_rates.c.opponent)
    if version is not None:
        query = query.where(win_rates.c.version == version)
    async with database.read() as connection:
        rows = (await connection.execute(query)).mappings().all()
    return [LiveWinRate(**{**row, "sequence": RollingSequence.from_state(row["sequence"])}) for row in rows]
