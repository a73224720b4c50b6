"""Stores the scores that a group had before another reward scored it again."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, or_, select

from bonbon.ids import time_ordered_id
from bonbon.pairs.group_records import Group, Unclean
from bonbon.store.tables import earlier_scores, groups
from bonbon.store.transaction import Transaction

SCORES = ("reward", "rank", "win_probability")
"""The fields of a candidate that a reward determines."""


def earlier_row(group: Group) -> dict[str, Any]:
    """Returns the scores of `group`, which are being replaced now, as a row of the table `earlier_scores`."""
    return {
        "id": time_ordered_id(),
        "group_id": group.id,
        "version": group.version,
        "replaced": datetime.now(UTC),
        "reward_name": group.reward_name,
        "reward_version": group.reward_version,
        "degraded": group.degraded,
        "unclean": group.unclean,
        "scores": [{name: getattr(candidate, name) for name in SCORES} for candidate in group.candidates],
    }


async def read_earlier(connection: Transaction, group: Group) -> list[Group]:
    """Returns the group with each of its earlier scores, oldest first."""
    query = select(earlier_scores).where(earlier_scores.c.group_id == group.id).order_by(earlier_scores.c.id)
    rows = (await connection.execute(query)).mappings().all()
    return [_restored(group, row, row["scores"]) for row in rows]


def was_trainable_by(name: str, version: str) -> ColumnElement[bool]:
    """Selects groups that the reward of this name and version scored earlier and that were trainable then."""
    row = earlier_scores.c
    usable = or_(row.unclean.is_(None), row.unclean == Unclean.TIED)
    return exists().where(row.group_id == groups.c.id, row.reward_name == name, row.reward_version == version, usable)


def _restored(group: Group, row: Any, scores: Sequence[dict[str, Any]]) -> Group:
    return replace(
        group,
        reward_name=row["reward_name"],
        reward_version=row["reward_version"],
        degraded=row["degraded"],
        unclean=None if row["unclean"] is None else Unclean(row["unclean"]),
        candidates=tuple(replace(one, **score) for one, score in zip(group.candidates, scores, strict=True)),
    )
