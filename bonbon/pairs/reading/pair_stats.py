"""Counts what the pair log holds."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Subquery, case, func, select

from bonbon.pairs.reading.reader import BEST, WORST, clean, with_pair
from bonbon.store.database import Database
from bonbon.store.tables import comparisons, earlier_scores, feedback, groups

MARGIN_GROUPS = 10_000
"""The newest clean groups of which `stats` takes the mean margin, because reading all candidates takes minutes in a
large log."""
_RESCORED = select(func.count(earlier_scores.c.group_id.distinct()))


@dataclass(frozen=True, slots=True)
class PairStats:
    """Counts of the log's contents.

    `unclean` counts groups by why they are not trained on, `versions` and `rewards` by what drew and scored them.
    `rescored` counts groups whose first scores have been replaced. `mean_margin` is the mean difference between the
    best and the worst reward of the newest 10,000 clean groups. `comparisons` counts audits by version, k and opponent.
    """

    groups: int
    clean: int
    unclean: dict[str, int]
    versions: dict[str, int]
    rewards: dict[str, int]
    rescored: int
    candidates: int
    mean_margin: float | None
    comparisons: list[dict[str, Any]]
    feedback: int
    first: datetime | None
    last: datetime | None


async def stats(database: Database) -> PairStats:
    """Returns counts over the whole log, which is read once."""
    kind = (groups.c.unclean, groups.c.version, groups.c.reward_name, groups.c.reward_version)
    counted = select(
        *kind,
        func.count().label("groups"),
        func.sum(groups.c.n).label("candidates"),
        func.min(groups.c.time).label("first"),
        func.max(groups.c.time).label("last"),
    ).group_by(*kind)
    newest = _newest_clean(MARGIN_GROUPS)
    margin = with_pair(select(func.avg(BEST.c.reward - WORST.c.reward)).select_from(newest), newest.c)
    won = comparisons.c.reward - comparisons.c.opponent_reward
    sides = (comparisons.c.version, comparisons.c.k, comparisons.c.opponent)
    compared = select(
        *sides,
        func.sum(case((won > 0, 1), else_=0)).label("win"),
        func.sum(case((won == 0, 1), else_=0)).label("tie"),
        func.sum(case((won < 0, 1), else_=0)).label("loss"),
    )
    compared = compared.group_by(*sides).order_by(*sides)
    async with database.read(bulk=True) as connection:
        kinds = (await connection.execute(counted)).mappings().all()
        mean_margin = (await connection.execute(margin)).scalar_one()
        comparisons_won = [dict(row) for row in (await connection.execute(compared)).mappings()]
        rescored = (await connection.execute(_RESCORED)).scalar_one()
        words = (await connection.execute(select(func.count()).select_from(feedback))).scalar_one()
    unclean, versions, rewards = Counter[str](), Counter[str](), Counter[str]()
    for row in kinds:
        unclean[row["unclean"] or ""] += row["groups"]
        versions[row["version"]] += row["groups"]
        rewards[f"{row['reward_name']} {row['reward_version']}"] += row["groups"]
    ranked = unclean.pop("", 0)
    return PairStats(
        groups=versions.total(),
        clean=ranked,
        unclean=dict(sorted(unclean.items())),
        versions=dict(sorted(versions.items())),
        rewards=dict(sorted(rewards.items())),
        rescored=rescored,
        candidates=sum(row["candidates"] for row in kinds),
        mean_margin=mean_margin,
        comparisons=comparisons_won,
        feedback=words,
        first=min((row["first"] for row in kinds), default=None),
        last=max((row["last"] for row in kinds), default=None),
    )


def _newest_clean(count: int) -> Subquery:
    return select(groups.c.id, groups.c.n).where(clean(None, None)).order_by(groups.c.id.desc()).limit(count).subquery()
