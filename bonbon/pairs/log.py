"""Appends to the pair log; an append returns when it is durable."""

import asyncio
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from enum import StrEnum

import structlog
from sqlalchemy import ColumnElement, Connection, insert, select
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError

from bonbon.database import Database
from bonbon.errors import StoreError, UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.erasures import without_erased
from bonbon.pairs.records import Comparison, Feedback, Group, Unclean
from bonbon.pairs.rows import candidate_rows, group_of, group_row
from bonbon.pairs.spool import Segment, Spool
from bonbon.pairs.win_rates import LiveWinRate, count
from bonbon.tables import candidates, clean_text, comparisons, feedback, groups
from bonbon.uncancelled import uncancelled

log = structlog.get_logger(__name__)

MAX_COMMIT = 256
RETRIES = timedelta(minutes=15)
"""Clients wait ten minutes for an answer, and two for the next attempt."""


class Kept(StrEnum):
    """Where a group is when `append` returns."""

    LOGGED = "logged"  # in the database
    SPOOLED = "spooled"  # on disk, until the database takes it
    REPEATED = "repeated"  # not stored: another group with the same idempotency key is
    DROPPED = "dropped"  # nowhere: neither database nor spool took it, and that is what was asked for


Waiting = tuple[Group, "asyncio.Future[Kept]"]


class PairLog:
    """Group commit: one writer takes everything that is waiting and commits it together, so that one fsync serves many.

    While the database cannot be reached, groups go to the spool, and from there to the database once it can.

    Args:
        database: a started database.
        spool: without one, an append fails when the database does.
        drop: let groups go that nothing takes, instead of failing.
        retry: seconds between attempts to empty the spool.
    """

    def __init__(
        self, database: Database, spool: Spool | None = None, *, drop: bool = False, retry: float = 1.0
    ) -> None:
        self.database, self.spool, self.drop, self.retry = database, spool, drop, retry
        self._waiting: asyncio.Queue[Waiting | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._replayer: asyncio.Task[None] | None = None
        self._open = False
        self._down = False
        self._pending = 0

    async def start(self) -> None:
        """Start the writer, and take over what an earlier process has left in the spool."""
        if self._writer is None:
            self._open = True
            self._writer = asyncio.create_task(self._write(), name="pair log")
            if self.spool is not None:
                # Before any request: one that comes again is known by the group that its first attempt has left.
                await self._empty_spool(self.spool)
                self._replayer = asyncio.create_task(self._watch_spool(self.spool), name="spool")

    async def stop(self) -> None:
        """Refuse new groups, commit what is waiting, then end. What the spool holds is for the next start."""
        self._open = False
        writer, self._writer = self._writer, None
        replayer, self._replayer = self._replayer, None
        if writer is not None:
            self._waiting.put_nowait(None)
            await writer
        if replayer is not None:
            replayer.cancel()
            with suppress(asyncio.CancelledError):
                await replayer

    @property
    def waiting(self) -> int:
        """Groups that are not yet durable."""
        return self._pending

    @property
    def down(self) -> bool:
        """Whether the last attempt to reach the database failed."""
        return self._down

    @property
    def can_wait(self) -> bool:
        """Whether groups are taken, or let go as was asked for, while the database does not answer."""
        return self.drop or (self.spool is not None and self.spool.has_room)

    def check(self) -> None:
        """Raise StoreError when an append could only fail now: before anything is drawn for it."""
        if self._down and not self.can_wait:
            raise StoreError("the database does not answer, and the spool is full")

    async def append(self, group: Group) -> Kept:
        """Store a group; durable on return. Appending the same id again does nothing.

        When the caller is cancelled the group is stored nevertheless.

        Raises:
            StoreError: neither database nor spool took it, or the log is not running; the group is not stored.
        """
        if not self._open:
            raise StoreError("the pair log is not running")
        done: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._pending += 1
        self._waiting.put_nowait((group, done))
        return await done

    async def append_comparison(self, comparison: Comparison) -> LiveWinRate:
        """Store an audit's comparison and count it; the live win rate with it.

        Raises StoreError, also when its group is gone.
        """
        async with self.database.write() as connection:
            await connection.execute(insert(comparisons), [{"id": time_ordered_id(), **asdict(comparison)}])
            return await count(self.database, connection, comparison)

    async def append_feedback(self, word: Feedback, *, tenant: str = "") -> None:
        """Store feedback on a group of `tenant`.

        Raises UserError for a group, or a candidate, that is not there, and StoreError.
        """
        query = select(groups.c.n).where(groups.c.id == word.group_id, groups.c.tenant == clean_text(tenant))
        async with self.database.read() as connection:
            n = (await connection.execute(query)).scalar_one_or_none()
        if n is None:
            raise UserError(
                f"there is no group {word.group_id!r} in the log; `bonbon.group_id` names it", param="group_id"
            )
        if word.chosen is not None and not 0 <= word.chosen < n:
            raise UserError(f"chosen is {word.chosen}, but the group has candidates 0 to {n - 1}", param="chosen")
        row = asdict(word)
        row["end_user"] = row.pop("user")
        async with self.database.write() as connection:
            await connection.execute(insert(feedback), [{"id": time_ordered_id(), **row}])

    async def group(self, group_id: str) -> Group | None:
        """The group with this id, or None. Raises StoreError."""
        return await self._find(groups.c.id == group_id)

    async def repeated(self, idempotency: str) -> Group | None:
        """The group that answered the request with this idempotency key, or None.

        While the database is down, only what this process has spooled is known.
        """
        if self.spool is not None and (group := self.spool.find(idempotency)) is not None:
            return group
        try:
            return await self._find(groups.c.idempotency == idempotency)
        except StoreError:
            return None

    async def seen(self, group: Group) -> bool:
        """Whether a group of this tenant and prompt is among those that are newer than `group`'s retries can be.

        While the database is down: yes, to be on the safe side.
        """
        query = select(groups.c.id).where(
            groups.c.time >= group.time - RETRIES,
            groups.c.prompt_digest == group.prompt.digest,
            groups.c.tenant == clean_text(group.tenant),
        )
        try:
            async with self.database.read() as connection:
                return (await connection.execute(query.limit(1))).first() is not None
        except StoreError:
            return True

    async def _find(self, condition: ColumnElement[bool]) -> Group | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(groups).where(condition))).mappings().one_or_none()
            if row is None:
                return None
            query = select(candidates).where(candidates.c.group_id == row["id"]).order_by(candidates.c.index)
            rows = (await connection.execute(query)).mappings().all()
        return group_of(dict(row), [dict(candidate) for candidate in rows])

    async def _write(self) -> None:
        running, entries = True, []
        try:
            while running:
                batch = [await self._waiting.get()]
                while len(batch) < MAX_COMMIT and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                entries = [entry for entry in batch if entry is not None]
                running = len(entries) == len(batch)  # `stop` puts None behind the last group
                if entries:
                    await self._settle(entries)
                    entries = []
        finally:
            # Nothing waits for a writer that was cancelled.
            self._open = False
            for _, done in entries:
                done.cancel()
            while not self._waiting.empty():
                if entry := self._waiting.get_nowait():
                    entry[1].cancel()

    async def _settle(self, entries: list[Waiting]) -> None:
        """Store the entries together; one that cannot be stored is told so, alone."""
        new = [group for group, _ in entries]
        stored: StoreError | None = None
        try:
            kept = await self._keep(new)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, and the writer go on
            if len(entries) > 1 and not unreachable(error) and not self._down:
                half = len(entries) // 2
                await self._settle(entries[:half])
                await self._settle(entries[half:])
                return
            stored = StoreError(f"the group could not be stored: {error}")
            stored.__cause__ = error
            kept = dict.fromkeys((group.id for group in new), Kept.DROPPED) if self.drop and self._down else {}
        self._pending -= len(entries)
        for group, done in entries:
            if done.done():  # its caller was cancelled
                continue
            if group.id in kept:
                done.set_result(kept[group.id])
            elif stored is not None:
                done.set_exception(stored)

    async def _keep(self, new: list[Group]) -> dict[str, Kept]:
        """Where each group is now: in the database, or in the spool when that cannot be reached."""
        if not self._down or self.spool is None:
            try:
                kept = await self._commit(new)
                self._note(down=False)
                return kept
            except StoreError as error:
                if not unreachable(error):
                    raise
                self._note(down=True)
                if self.spool is None:
                    raise
        await uncancelled(asyncio.to_thread(self.spool.append, new))
        return dict.fromkeys((group.id for group in new), Kept.SPOOLED)

    async def _commit(self, new: list[Group]) -> dict[str, Kept]:
        by_id = {group.id: group for group in reversed(new)}
        if not by_id:
            return {}
        return await self.database.transact(lambda connection: self._insert_groups(connection, by_id))

    def _insert_groups(self, connection: Connection, by_id: dict[str, Group]) -> dict[str, Kept]:
        insertion = self.database.insert_new(groups).returning(groups.c.id)
        inserted = set(connection.execute(insertion, [group_row(group) for group in by_id.values()]).scalars())
        rows = [row for group_id in inserted for row in candidate_rows(by_id[group_id])]
        if rows:
            connection.execute(insert(candidates), rows)
        late = [i for i, group in by_id.items() if i not in inserted and group.idempotency is not None]
        there: set[str] = set()
        if late:
            there = set(connection.execute(select(groups.c.id).where(groups.c.id.in_(late))).scalars())
        return {i: Kept.REPEATED if i in late and i not in there else Kept.LOGGED for i in by_id}

    async def _watch_spool(self, spool: Spool) -> None:
        while True:
            await asyncio.sleep(self.retry)
            await self._empty_spool(spool)

    async def _empty_spool(self, spool: Spool) -> None:
        try:
            while (segment := await uncancelled(asyncio.to_thread(spool.take))) is not None:
                await self._replay(spool, segment)
            if self._down:
                await self._probe()
        except StoreError as error:
            self._note(down=unreachable(error))
            if not unreachable(error):
                log.exception("the spool cannot be emptied; its groups stay in it")
        except OSError:
            log.exception("the spool cannot be read; its groups stay in it")

    async def _replay(self, spool: Spool, segment: Segment) -> None:
        try:
            found = await asyncio.to_thread(segment.groups)
            for start in range(0, len(found), MAX_COMMIT):
                await self._replay_groups(spool, found[start : start + MAX_COMMIT])
            await uncancelled(asyncio.to_thread(spool.delete, segment, found))
        finally:
            segment.close()
        self._note(down=False)
        if found:
            log.info("spooled groups are in the database", groups=len(found))

    async def _probe(self) -> None:
        async with self.database.read() as connection:
            await connection.execute(select(1))
        self._note(down=False)

    async def _replay_groups(self, spool: Spool, found: list[Group]) -> None:
        try:
            async with self.database.read() as connection:
                found = await without_erased(connection, found)
            kept = await self._commit(found)
        except StoreError as error:
            if unreachable(error):
                raise
            if len(found) == 1:
                await asyncio.to_thread(spool.put_aside, found[0])
                log.error("the database refuses a spooled group; it is put aside", group=found[0].id, error=str(error))
                return
            for half in (found[: len(found) // 2], found[len(found) // 2 :]):
                await self._replay_groups(spool, half)
            return
        # Answered while the first attempt's group could not be looked up: kept, but not for training.
        second = [
            replace(group, idempotency=None, unclean=Unclean.REPEATED)
            for group in found
            if kept[group.id] is Kept.REPEATED
        ]
        if second:
            await self._commit(second)

    def _note(self, *, down: bool) -> None:
        if down and not self._down:
            log.error("the database does not answer; groups wait in the spool", spool=self.spool is not None)
        elif self._down and not down:
            log.info("the database answers again")
        self._down = down


def unreachable(error: Exception) -> bool:
    """Whether `error` would meet every group alike, for the database is locked, full or gone."""
    cause = error.__cause__
    return isinstance(cause, OperationalError | TimeoutError) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )
