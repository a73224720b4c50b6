"""Appends to the pair log; an append returns when it is durable."""

import asyncio
from dataclasses import asdict

from sqlalchemy import insert, select
from sqlalchemy.exc import OperationalError, TimeoutError

from bonbon.database import Database
from bonbon.errors import StoreError, UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.records import Comparison, Feedback, Group
from bonbon.pairs.rows import candidate_rows, group_of, group_row
from bonbon.pairs.win_rates import LiveWinRate, count
from bonbon.tables import candidates, clean_text, comparisons, feedback, groups

MAX_COMMIT = 256
UNREACHABLE = (OperationalError, TimeoutError)
"""What fails for every group alike: locked, full, gone."""

Waiting = tuple[Group, "asyncio.Future[None]"]


class PairLog:
    """Group commit: one writer takes everything that is waiting and commits it together, so that one fsync serves many.

    Args:
        database: a started database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._waiting: asyncio.Queue[Waiting | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._open = False
        self._pending = 0

    async def start(self) -> None:
        """Start the writer."""
        if self._writer is None:
            self._open = True
            self._writer = asyncio.create_task(self._write(), name="pair log")

    async def stop(self) -> None:
        """Refuse new groups, commit what is waiting, then end."""
        self._open = False
        writer, self._writer = self._writer, None
        if writer is not None:
            self._waiting.put_nowait(None)
            await writer

    @property
    def waiting(self) -> int:
        """Groups that are not yet durable."""
        return self._pending

    async def append(self, group: Group) -> None:
        """Store a group; durable on return. Appending the same id again does nothing.

        When the caller is cancelled the group is stored nevertheless.

        Raises:
            StoreError: the database failed, or the log is not running; the group is not stored.
        """
        if not self._open:
            raise StoreError("the pair log is not running")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending += 1
        self._waiting.put_nowait((group, done))
        await done

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
        """The group with this id, or None."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(groups).where(groups.c.id == group_id))).mappings().one_or_none()
            if row is None:
                return None
            query = select(candidates).where(candidates.c.group_id == group_id).order_by(candidates.c.index)
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
        """Commit the entries in one transaction; one that cannot be stored is told so, alone."""
        try:
            await self._commit([group for group, _ in entries])
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, and the writer go on
            if len(entries) > 1 and not isinstance(error.__cause__, UNREACHABLE):
                half = len(entries) // 2
                await self._settle(entries[:half])
                await self._settle(entries[half:])
                return
            failure: Exception | None = error
        else:
            failure = None
        self._pending -= len(entries)
        for _, done in entries:
            if done.done():  # its caller was cancelled
                continue
            if failure is None:
                done.set_result(None)
            else:
                stored = StoreError(f"the group could not be stored: {failure}")
                stored.__cause__ = failure
                done.set_exception(stored)

    async def _commit(self, new: list[Group]) -> None:
        by_id = {group.id: group for group in reversed(new)}
        insertion = self.database.insert_new(groups).returning(groups.c.id)
        async with self.database.write() as connection:
            inserted = await connection.execute(insertion, [group_row(group) for group in by_id.values()])
            rows = [row for group_id in inserted.scalars() for row in candidate_rows(by_id[group_id])]
            if rows:
                await connection.execute(insert(candidates), rows)
