"""Scores logged groups again, with another reward or another version of their reward."""

import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import structlog
from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, insert, not_, or_, select, update

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.errors import RewardError
from bonbon.pairs.group_records import TRAINING, Candidate, Group, Unclean
from bonbon.pairs.group_rows import group_of
from bonbon.pairs.ranking import rank, why_unclean
from bonbon.pairs.reading.readable_prompts import ReadablePrompts
from bonbon.pairs.reading.reader import RewardKey, Tenants, of_tenants, scored_by, trainable
from bonbon.pairs.rescoring.earlier_scores import SCORES, earlier_row
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_check import check_reward
from bonbon.rewards.scoring import OFFLINE_DEADLINE, score_texts
from bonbon.store.database import Database
from bonbon.store.storable_text import clean_name
from bonbon.store.tables import candidates, earlier_scores, groups, versions

log = structlog.get_logger(__name__)

AT_ONCE = 32
"""Groups that are scored concurrently and stored together. A killed process loses at most these."""
MAX_FAILURES = 64
"""Consecutive groups that fail before the reward is considered broken."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Selects groups that may be scored again: those of some `versions` and `tenants` (None: all)."""

    versions: Collection[str] | None = None
    tenants: Tenants = None


@dataclass(slots=True)
class Rescored:
    """The results of scoring groups again.

    Attributes:
        scored: Number of groups that now have scores of the reward.
        unclean: Number of these that are unclean, by reason.
        failed: Why the others could not be scored, by group id; their scores are unchanged.
        unreadable: Number of groups skipped because this process cannot decode their token-id prompts.
    """

    scored: int = 0
    unclean: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def clean(self) -> int:
        """Number of groups that may be trained on and make a preference pair."""
        return self.scored - sum(self.unclean.values())

    def add(self, group: Group, outcome: Group | RewardError | None, *, stored: bool) -> None:
        """Counts the result of `group`; see `_score`."""
        if outcome is None:
            self.unreadable += 1
        elif isinstance(outcome, RewardError):
            self.failed[group.id] = str(outcome)
        elif stored:
            self.scored += 1
            if outcome.unclean is not None:
                self.unclean[outcome.unclean] = self.unclean.get(outcome.unclean, 0) + 1


@asynccontextmanager
async def started(reward: Reward, *, expected: RewardKey | None = None) -> AsyncIterator[tuple[Reward, RewardKey]]:
    """Yields the reward, started and tested, and its key in the log. Stops it after the block.

    Args:
        expected: The reward is not tested if it has this key as soon as it has started.

    Raises:
        UserError: The reward cannot be loaded.
        RewardError: The reward fails to score.
    """
    await reward.start()
    try:
        if reward_key(reward) != expected:
            await check_reward(reward)  # some rewards learn their version with the first score
        yield reward, reward_key(reward)
    finally:
        await reward.stop()


def reward_key(reward: Reward) -> RewardKey:
    """Returns the name and version of a reward that has scored, as stored in the log."""
    return RewardKey(clean_name(reward.name), clean_name(str(reward.version)))


_NEW_SCORES = (
    update(candidates)
    .where(candidates.c.group_id == bindparam("of_group"), candidates.c.index == bindparam("at_index"))
    .values({name: bindparam(f"new_{name}") for name in SCORES})
)


async def count_rescorable(database: Database, reward: RewardKey, scope: Scope = Scope()) -> int:
    """Returns how many groups `rescore` would score."""
    query = select(func.count()).select_from(groups).where(_rescorable(reward, scope))
    async with database.read(bulk=True) as connection:
        return int((await connection.execute(query)).scalar_one())


async def rescore(
    database: Database,
    reward: Reward,
    scope: Scope = Scope(),
    *,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
    data_dir: Path = Path("data"),
) -> Rescored:
    """Scores the logged texts of groups that a started reward has not scored yet, newest groups first.

    The reward reads what the first one read. Ranks, ties and the reasons for unclean groups follow the same rules as
    for a newly logged group, and the replaced scores are kept in the table `earlier_scores`. `AT_ONCE` groups are
    stored per transaction, so that a later call continues after an interrupted one. Groups that are deleted, or that
    another process scores meanwhile, are skipped.

    Groups that no scores make trainable (for instance greedy ones), groups that a tenant's own reward ranked, and draws
    of a training's intermediate policies are left out. Groups without scores, because their reward had failed, are
    scored if that reward had the same name.

    Args:
        limit: Score at most this many of the newest groups.
        progress: Called with the number of groups done so far.
        data_dir: The data directory, which may hold base models whose tokenizers decode token-id prompts.

    Raises:
        RewardError: `MAX_FAILURES` groups in a row could not be scored; new scores so far are kept.
        StoreError: The database failed; new scores so far are kept.
    """
    key, prompts, found = reward_key(reward), ReadablePrompts(database, data_dir), Rescored()
    done, before = 0, None
    in_a_row: list[RewardError] = []
    while limit is None or done < limit:
        size = AT_ONCE if limit is None else min(AT_ONCE, limit - done)
        some = await _read(database, _rescorable(key, scope), before, size)
        if not some:
            break
        readable = [await prompts.of(group) for group in some]
        outcomes = await gather_or_cancel(_score(*pair, reward) for pair in zip(some, readable, strict=True))
        stored = await _store(database, zip(some, outcomes, strict=True))
        for group, outcome in zip(some, outcomes, strict=True):
            found.add(group, outcome, stored=group.id in stored)
            if isinstance(outcome, RewardError):
                in_a_row.append(outcome)
            elif outcome is not None:
                in_a_row.clear()
        done, before = done + len(some), some[-1].id
        if progress is not None:
            progress(done)
        if len(in_a_row) >= MAX_FAILURES:
            raise RewardError(
                f"{len(in_a_row)} groups in a row could not be scored, the last one because: {in_a_row[-1]}; "
                f"the {found.scored} groups that were scored before keep their new scores"
            )
    return found


def _rescorable(reward: RewardKey, scope: Scope) -> ColumnElement[bool]:
    ranked = and_(trainable(None, None), not_(scored_by(reward)))
    unranked = and_(groups.c.unclean == Unclean.DEGRADED, groups.c.reward_name == reward.name)
    conditions = [or_(ranked, unranked), of_tenants(scope.tenants)]
    if scope.versions is None:
        known = groups.c.version.in_(select(versions.c.name))
        conditions.append(or_(groups.c.origin != TRAINING, known))
    else:
        conditions.append(groups.c.version.in_(scope.versions))
    return and_(*conditions)


async def _read(database: Database, condition: ColumnElement[bool], before: str | None, limit: int) -> Sequence[Group]:
    """Returns the newest groups older than the group `before`, newest first."""
    if before is not None:
        condition = and_(condition, groups.c.id < before)
    query = select(groups).where(condition).order_by(groups.c.id.desc()).limit(limit)
    async with database.read(bulk=True) as connection:
        rows = (await connection.execute(query)).mappings().all()
        members = select(candidates).where(candidates.c.group_id.in_([row["id"] for row in rows]))
        drawn = (await connection.execute(members.order_by(candidates.c.group_id, candidates.c.index))).mappings().all()
    by_group = {group_id: [dict(one) for one in some] for group_id, some in groupby(drawn, key=itemgetter("group_id"))}
    return [group_of(dict(row), by_group[row["id"]]) for row in rows]


async def _score(group: Group, prompt: Prompt | None, reward: Reward) -> Group | RewardError | None:
    """Returns the group with the reward's scores, or the error, or None when its prompt cannot be decoded."""
    if prompt is None:
        return None
    try:
        texts = [candidate.text for candidate in group.candidates]
        scores = await score_texts(reward, prompt, texts, deadline=OFFLINE_DEADLINE)
    except RewardError as error:
        log.warning("a group could not be scored again", group=group.id, reward=reward.name, error=str(error))
        return error.with_traceback(None)
    name, version = reward_key(reward)
    ranked = rank(group.candidates, scores, random.Random(group.sampling.seed))
    scored = replace(group, reward_name=name, reward_version=version, degraded=None, candidates=ranked)
    return replace(scored, unclean=why_unclean(scored))


async def _store(database: Database, outcomes: Iterable[tuple[Group, Group | RewardError | None]]) -> set[str]:
    """Stores new scores and keeps the old ones. Returns the ids of groups that had not changed since they were read."""
    scored = [(old, new) for old, new in outcomes if isinstance(new, Group)]
    return await database.transact(lambda connection: _replace(connection, scored)) if scored else set()


def _replace(connection: Connection, scored: Sequence[tuple[Group, Group]]) -> set[str]:
    stored = [(old, new) for old, new in scored if _claim(connection, old, new)]
    if stored:
        connection.execute(insert(earlier_scores), [earlier_row(old) for old, _ in stored])
        connection.execute(_NEW_SCORES, [_parameters(new.id, one) for _, new in stored for one in new.candidates])
    return {new.id for _, new in stored}


def _claim(connection: Connection, old: Group, new: Group) -> bool:
    """Gives a group's row its new reward if it is unchanged since it was read."""
    unchanged = and_(
        groups.c.id == old.id,
        groups.c.reward_name == old.reward_name,
        groups.c.reward_version == old.reward_version,
        groups.c.unclean.is_(None) if old.unclean is None else groups.c.unclean == old.unclean,
    )
    values = {name: getattr(new, name) for name in ("reward_name", "reward_version", "degraded", "unclean")}
    return connection.execute(update(groups).where(unchanged).values(values)).rowcount == 1


def _parameters(group_id: str, candidate: Candidate) -> dict[str, object]:
    scores = {f"new_{name}": getattr(candidate, name) for name in SCORES}
    return {"of_group": group_id, "at_index": candidate.index, **scores}
