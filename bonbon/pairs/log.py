"""Appends to the pair log; an append returns when it is durable."""

import asyncio
from dataclasses import asdict
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError

from bonbon.database import Database
from bonbon.errors import StoreError, UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.records import Comparison, Feedback, Group
from bonbon.pairs.rows import candidate_rows, group_of, group_row
from bonbon.tables import candidates, comparisons, feedback, groups

MAX_COMMIT = 256

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

    async def start(self) -> None:
        """Start the writer."""
        self._writer = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Commit what is waiting, then end."""
        if self._writer is not None:
            await self._waiting.put(None)
            await self._writer
            self._writer = None

    @property
    def waiting(self) -> int:
        """Groups that are not yet durable."""
        return self._waiting.qsize()

    async def append(self, group: Group) -> None:
        """Store a group; durable on return. Appending the same id again does nothing.

        Raises:
            StoreError: the database failed, or the log is not running; the group is not stored.
        """
        if self._writer is None or self._writer.done():
            raise StoreError("the pair log is not running")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._waiting.put((group, done))
        await done

    async def append_comparison(self, comparison: Comparison) -> None:
        """Store an audit's comparison. Raises StoreError."""
        await self._insert(comparisons, {"id": time_ordered_id(), **asdict(comparison)})

    async def append_feedback(self, word: Feedback) -> None:
        """Store feedback. Raises UserError for a group, or a candidate, that is not there, and StoreError."""
        query = select(groups.c.n).where(groups.c.id == word.group_id)
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
        await self._insert(feedback, {"id": time_ordered_id(), **row})

    async def group(self, group_id: str) -> Group | None:
        """The group with this id, or None."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(groups).where(groups.c.id == group_id))).mappings().one_or_none()
            if row is None:
                return None
            query = select(candidates).where(candidates.c.group_id == group_id).order_by(candidates.c.index)
            rows = (await connection.execute(query)).mappings().all()
        return group_of(dict(row), [dict(candidate) for candidate in rows])

    async def _insert(self, table: Any, row: dict[str, Any]) -> None:
        try:
            async with self.database.write() as connection:
                await connection.execute(insert(table), [row])
        except SQLAlchemyError as error:
            raise StoreError(f"the {table.name} table could not be written: {error}") from error

    async def _write(self) -> None:
        running = True
        while running:
            batch = [await self._waiting.get()]
            while len(batch) < MAX_COMMIT and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            running = batch[-1] is not None
            entries = [entry for entry in batch if entry is not None]
            if entries and not await self._commit(entries) and len(entries) > 1:
                # One bad group must not take the others with it.
                for entry in entries:
                    await self._commit([entry])

    async def _commit(self, entries: list[Waiting]) -> bool:
        """Whether the entries are durable; a lone entry that is not gets its error."""
        error: Exception | None = None
        try:
            async with self.database.write() as connection:
                await connection.execute(self.database.insert_new(groups), [group_row(group) for group, _ in entries])
                await connection.execute(
                    self.database.insert_new(candidates),
                    [row for group, _ in entries for row in candidate_rows(group)],
                )
        except Exception as failure:  # noqa: BLE001 - whoever waits must hear of it, and the writer go on
            error = failure
        if error is not None and len(entries) > 1:
            return False
        for _, done in entries:
            if done.done():  # the request was cancelled while it waited
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(StoreError(f"the group could not be stored: {error}"))
        return error is None
