"""Moves groups from the spool into the database."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from bonbon.concurrency.shielded import shielded
from bonbon.errors import StoreError, StoreUnavailable
from bonbon.pairs.deletion.erasures import without_erased
from bonbon.pairs.group_records import Group
from bonbon.pairs.group_store import MAX_REFUSALS, Kept, Refusal, offer, store_groups
from bonbon.pairs.health import Health
from bonbon.pairs.ranking import why_unclean
from bonbon.pairs.spool.segment import Line, Segment
from bonbon.pairs.spool.spool import Spool
from bonbon.store.database import Database

log = structlog.get_logger(__name__)

MOST_AT_ONCE = 256
STRIKES = 3
"""Refusals of one group, each but the last followed by a stored group, after which it is set aside."""


@dataclass(slots=True)
class _Pass:
    """The results of one pass over the spool."""

    stored: int = 0
    refused: int = 0
    over: bool = False


class Replayer:
    """Offers spooled groups to the database until it accepts them.

    A failure of the whole database (unreachable, read-only, empty, full) must not count against the groups. A group is
    set aside only when the database has refused it alone `STRIKES` times and has stored another group between the
    refusals.
    """

    def __init__(self, database: Database, spool: Spool, health: Health) -> None:
        self.database, self.spool, self.health = database, spool, health
        self._strikes: dict[str, tuple[int, int]] = {}
        self._at_once = MOST_AT_ONCE

    async def empty(self) -> None:
        """Offers waiting groups once, while the database answers. Never raises an error of the spool or the
        database."""
        done = _Pass()
        try:
            paths = await asyncio.to_thread(self.spool.paths)
            if self._at_once < MOST_AT_ONCE:
                random.shuffle(paths)
            for path in paths:
                await self._empty(path, done)
                if done.over:
                    break
            await asyncio.to_thread(self.spool.measure)
            if self.health.down and not done.over and self.spool.empty:
                await self._probe()
        except Exception:
            log.exception("the spool cannot be emptied; its groups stay in it")
        if done.stored:
            log.info("spooled groups stored in the database", groups=done.stored)

    async def _empty(self, path: Path, done: _Pass) -> None:
        try:
            segment = await shielded(asyncio.to_thread(self.spool.take, path))
            if segment is not None:
                await self._replay(segment, done)
        except OSError as error:
            log.error("a spool file cannot be emptied; it stays there", file=str(path), reason=str(error))

    async def _replay(self, segment: Segment, done: _Pass) -> None:
        try:
            lines = await asyncio.to_thread(segment.lines)
            if segment.torn:
                log.warning(
                    "the last line of a segment is incomplete; its group was never reported as stored",
                    file=segment.path.name, bytes=segment.torn,
                )  # fmt: skip
            left = await self._set_aside_unreadable(segment, lines)
            left += await self._offer([line for line in lines if line.group is not None], done)
            if len(left) < len(lines) or not lines:
                await shielded(asyncio.to_thread(self.spool.keep, segment, [line.data for line in left]))
        finally:
            segment.close()

    async def _set_aside_unreadable(self, segment: Segment, lines: list[Line]) -> list[Line]:
        """Sets aside lines without a readable group. Returns those that stay in the segment because that failed."""
        bad = [line for line in lines if line.group is None]
        if not bad:
            return []
        told = {"file": segment.path.name, "lines": len(bad), "reason": bad[0].fault}
        try:
            await shielded(asyncio.to_thread(self.spool.set_aside.add, [(line.data, line.fault) for line in bad]))
        except OSError as error:
            log.error("lines of the spool can neither be read nor set aside; they stay", failure=str(error), **told)
            return bad
        log.error("lines of the spool cannot be read; they are set aside", **told)
        return []

    async def _offer(self, lines: list[Line], done: _Pass) -> list[Line]:
        """Returns those of `lines` that stay in the spool."""
        waiting = {line.group.id: line for line in lines if line.group is not None}
        order = [line.group for line in waiting.values() if line.group is not None]
        if self._at_once < MOST_AT_ONCE:
            random.shuffle(order)  # groups that are always refused must not keep the others from the database
        aside: list[Refusal] = []
        while order and not done.over:
            some, order = order[: self._at_once], order[self._at_once :]
            found = await offer(some, self._store, self.health)
            done.stored += len(found.kept)
            done.refused += len(found.refused)
            done.over = found.hopeless or (done.refused >= MAX_REFUSALS and not done.stored)
            self._at_once = max(1, self._at_once // 2) if done.over else min(MOST_AT_ONCE, 2 * self._at_once)
            if isinstance(found.error, StoreUnavailable) or (self.health.down and found.error is not None):
                self.health.failed(found.error, spool=True)
            aside += [refusal for refusal in found.refused if self._struck_out(refusal)]
            for group_id in found.kept:
                waiting.pop(group_id, None)
                self._strikes.pop(group_id, None)
        if aside:
            await self._set_aside(aside, waiting)
        return list(waiting.values())

    def _struck_out(self, refusal: Refusal) -> bool:
        """Records a refusal and returns whether the group is to be set aside."""
        strikes, taken = self._strikes.get(refusal.group.id, (0, -1))
        if refusal.taken > taken:
            strikes += 1
        self._strikes[refusal.group.id] = (strikes, refusal.taken)
        return strikes >= STRIKES

    async def _set_aside(self, refusals: Sequence[Refusal], waiting: dict[str, Line]) -> None:
        lines = [(waiting[r.group.id].data, f"the database refused it: {r.error.why}") for r in refusals]
        await shielded(asyncio.to_thread(self.spool.set_aside.add, lines))
        for refusal in refusals:
            del waiting[refusal.group.id], self._strikes[refusal.group.id]
            log.error(
                "the database refuses this group and accepts others; it is set aside", group=refusal.group.id,
                reason=str(refusal.error),
            )  # fmt: skip

    async def _store(self, found: Sequence[Group]) -> dict[str, Kept]:
        return await store_late(self.database, found)

    async def _probe(self) -> None:
        async with self.database.read() as connection:
            await connection.execute(select(1))
        self.health.answered()


async def store_late(database: Database, found: Sequence[Group]) -> dict[str, Kept]:
    """Stores groups that arrive late, like `store_groups`, but without those that were erased meanwhile.

    Raises StoreError.
    """
    wanted = await _without_erased(database, found)
    kept = await store_groups(database, wanted)
    # Answered while the first attempt's group could not be looked up, so it is kept but not trained on.
    second = [
        replace(group, idempotency=None, unclean=why_unclean(group, repeated=True))
        for group in wanted
        if kept[group.id] is Kept.REPEATED
    ]
    await store_groups(database, second)
    return {group.id: kept.get(group.id, Kept.LOGGED) for group in found}


async def _without_erased(database: Database, found: Sequence[Group]) -> list[Group]:
    """Returns the groups that were not erased.

    Raises StoreUnavailable when the database cannot say what was erased, which is not the groups' fault, and StoreError
    when a group cannot be compared.
    """
    try:
        async with database.read() as connection:
            return await without_erased(connection, found)
    except StoreError as error:
        if isinstance(error.__cause__, DBAPIError):
            raise StoreUnavailable(str(error), why=error.why) from error
        raise
    except Exception as error:
        raise StoreError(f"the groups cannot be stored: {type(error).__name__}", why=type(error).__name__) from error
