"""Reads what training is made of: clean groups with all their candidates."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from sqlalchemy import select

from bonbon.database import Database
from bonbon.pairs.reader import RewardKey, Tenants, next_clean
from bonbon.pairs.rows import prompt_of
from bonbon.prompt import Prompt
from bonbon.tables import candidates

CHUNK = 200


@dataclass(frozen=True, slots=True)
class CleanGroup:
    """One prompt's candidates by rank, the worst first: tokens as drawn, log-probabilities in nats."""

    group_id: str
    prompt: Prompt
    prompt_digest: str
    prompt_token_ids: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]
    logprobs: tuple[float, ...]
    n: int
    temperature: float
    max_tokens: int
    reward: RewardKey


async def clean_groups(
    database: Database, *, version: str, after: str | None = None, tenants: Tenants = None, chunk: int = CHUNK
) -> AsyncGenerator[CleanGroup]:
    """The clean groups of `version` and of `tenants` (None: of all), oldest first, in constant memory."""
    some = next_clean(version, tenants, chunk)
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
            yield CleanGroup(
                group_id,
                prompt=prompt_of(row["prompt"]),
                prompt_digest=row["prompt_digest"],
                prompt_token_ids=row["prompt_token_ids"],
                candidates=tuple(tuple(one["token_ids"]) for one in ranked),
                rewards=tuple(one["reward"] for one in ranked),
                logprobs=tuple(one["logprob"] for one in ranked),
                n=row["n"],
                temperature=row["temperature"],
                max_tokens=row["max_tokens"],
                reward=RewardKey(row["reward_name"], row["reward_version"]),
            )
