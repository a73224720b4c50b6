"""Reads complete scored groups, including tied ones, from which best-of-k is estimated."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import and_, select

from bonbon.pairs.group_rows import prompt_of
from bonbon.pairs.reading.reader import RewardKey, scored_by, trainable
from bonbon.prompt import Prompt
from bonbon.store.database import Database
from bonbon.store.tables import candidates, groups

CHUNK = 200


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The candidates of one prompt by rank, lowest first; ties were broken at random when the group was logged.

    `prompt` and `texts` are only filled on request.
    """

    id: str
    prompt_digest: str
    rewards: tuple[float, ...]
    prompt: Prompt | None = None
    texts: tuple[str, ...] = ()


class Kind(NamedTuple):
    """Groups of the same sampler, reward and n."""

    version: str
    reward: RewardKey
    n: int


async def scored_groups(
    database: Database,
    *,
    version: str,
    reward: RewardKey,
    min_n: int,
    after: str | None = None,
    texts: bool = False,
    chunk: int = CHUNK,
) -> AsyncIterator[ScoredGroup]:
    """Yields groups of `version` with at least `min_n` candidates, scored by `reward`, oldest first, in constant
    memory.
    """
    columns = [groups.c.id, groups.c.prompt_digest, *([groups.c.prompt] if texts else [])]
    condition = and_(scored_by(reward), groups.c.n >= min_n)
    last, found = after, chunk
    while found == chunk:
        page = select(*columns).where(trainable(version, last), condition).order_by(groups.c.id).limit(chunk)
        some = page.subquery()
        query = (
            select(some, candidates.c.reward, *([candidates.c.text] if texts else []))
            .join(candidates, candidates.c.group_id == some.c.id)
            .order_by(some.c.id, candidates.c.rank)
        )
        async with database.read(bulk=True) as connection:
            rows = (await connection.execute(query)).mappings().all()
        found = 0
        for group_id, members in groupby(rows, key=itemgetter("id")):
            ranked = list(members)
            found, last = found + 1, group_id
            yield ScoredGroup(
                group_id,
                ranked[0]["prompt_digest"],
                tuple(row["reward"] for row in ranked),
                prompt_of(ranked[0]["prompt"]) if texts else None,
                tuple(row["text"] for row in ranked) if texts else (),
            )
