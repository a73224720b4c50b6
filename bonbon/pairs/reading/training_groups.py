"""Reads training data: groups whose candidates are all scored draws of one version's own distribution."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from sqlalchemy import bindparam, select

from bonbon.pairs.group_rows import prompt_of
from bonbon.pairs.reading.reader import RewardKey, Tenants, trainable
from bonbon.prompt import Prompt
from bonbon.store.database import Database
from bonbon.store.tables import candidates, groups

CHUNK = 200


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """The candidates of one prompt by rank, worst first: sampled tokens, log-probabilities in nats.

    The best candidate of a tied group is not above its worst.
    """

    group_id: str
    version: str
    prompt: Prompt
    prompt_digest: str
    prompt_token_ids: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]
    logprobs: tuple[float, ...]
    n: int
    temperature: float
    max_tokens: int
    stop: tuple[str, ...]
    reward: RewardKey


async def training_groups(
    database: Database, *, version: str, after: str | None = None, tenants: Tenants = None, chunk: int = CHUNK
) -> AsyncGenerator[TrainingGroup]:
    """Yields the groups of `version` and of `tenants` (None: all) that may be trained on, oldest first.

    Reads `chunk` groups at a time, so that memory does not grow with the log.
    """
    # Groups are selected before the join, because a planner that joins first reads all candidates again for every
    # chunk.
    some = (
        select(groups)
        .where(trainable(version, None, tenants), groups.c.id > bindparam("after"))
        .order_by(groups.c.id)
        .limit(chunk)
        .subquery()
    )
    query = (
        select(some, candidates.c.token_ids, candidates.c.reward, candidates.c.logprob)
        .join(candidates, candidates.c.group_id == some.c.id)
        .order_by(some.c.id, candidates.c.rank)
    )
    found, last = chunk, after or ""
    while found == chunk:
        async with database.read(bulk=True) as connection:
            rows = (await connection.execute(query.params(after=last))).mappings().all()
        found = 0
        for group_id, members in groupby(rows, key=itemgetter("id")):
            ranked = list(members)
            row, found, last = ranked[0], found + 1, group_id
            yield TrainingGroup(
                group_id,
                version=row["version"],
                prompt=prompt_of(row["prompt"]),
                prompt_digest=row["prompt_digest"],
                prompt_token_ids=row["prompt_token_ids"],
                candidates=tuple(tuple(one["token_ids"]) for one in ranked),
                rewards=tuple(one["reward"] for one in ranked),
                logprobs=tuple(one["logprob"] for one in ranked),
                n=row["n"],
                temperature=row["temperature"],
                max_tokens=row["max_tokens"],
                stop=tuple(row["stop"]),
                reward=RewardKey(row["reward_name"], row["reward_version"]),
            )
