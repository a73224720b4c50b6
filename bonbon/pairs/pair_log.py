"""Appends to the pair log; an append returns when it is durable."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, insert, select

from bonbon.concurrency.shielded import shielded
from bonbon.errors import StoreError, StoreUnavailable, UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_records import Comparison, Feedback, Group
from bonbon.pairs.group_rows import group_of
from bonbon.pairs.group_store import Kept, Offer, offer, store_groups
from bonbon.pairs.health import Health
from bonbon.pairs.live.win_rates import LiveWinRate, count
from bonbon.pairs.recent_answers import SECONDS, RecentAnswers
from bonbon.pairs.rescoring.earlier_scores import read_earlier
from bonbon.pairs.spool.replay import MOST_AT_ONCE, Replayer
from bonbon.pairs.spool.spool import Spool
from bonbon.store.database import Database
from bonbon.store.storable_text import clean_text
from bonbon.store.tables import candidates, comparisons, feedback, groups

log = structlog.get_logger(__name__)

RETRIES = timedelta(seconds=SECONDS)
LAST_COMMIT = 2.0
"""Seconds that `stop` gives the database for what waits, before that goes to the spool."""

Waiting = tuple[Group, "asyncio.Future[Kept]"]


class PairLog:
    """Group commit: one writer takes everything that is waiting and commits it together, so that one fsync serves many.

    What the database does not take goes to the spool, and from there to the database once it does.

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
        self.health = Health()
        self._recent = RecentAnswers()
        self._waiting: asyncio.Queue[Waiting | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._replayer: asyncio.Task[None] | None = None
        self._commit: asyncio.Task[dict[str, Kept]] | None = None
        self._open = False
        self._hurry = asyncio.Event()
        self._pending = 0

    async def start(self) -> None:
        """Start the writer, and take over what an earlier process has left in the spool."""
        if self._writer is None:
            self._open = True
            self._hurry.clear()
            self._writer = asyncio.create_task(self._write(), name="pair log")
            if self.spool is not None:
                # Before any request: one that comes again is known by the group that its first attempt has left.
                replayer = Replayer(self.database, self.spool, self.health)
                await replayer.empty()
                self._replayer = asyncio.create_task(self._watch_spool(replayer), name="spool")

    async def stop(self) -> None:
        """Refuse new groups, commit what is waiting, then end. What the spool holds is for the next start.

        A database that does not answer within `LAST_COMMIT` seconds is waited for no longer.
        """
        self._open = False
        writer, self._writer = self._writer, None
        replayer, self._replayer = self._replayer, None
        if replayer is not None:
            replayer.cancel()
            with suppress(asyncio.CancelledError):
                await replayer
        if writer is not None:
            self._waiting.put_nowait(None)
            await asyncio.wait({writer}, timeout=LAST_COMMIT)
            self._hurry.set()
            if self._commit is not None:
                self._commit.cancel()
            await writer

    @property
    def waiting(self) -> int:
        """Groups that are not yet durable."""
        return self._pending

    @property
    def can_wait(self) -> bool:
        """Whether groups are taken, or let go as was asked for, while the database does not take them."""
        return self.drop or (self.spool is not None and self.spool.has_room)

    def check(self) -> None:
        """Raise StoreError when an append could only fail now: before anything is drawn for it."""
        if self.health.down and not self.can_wait:
            raise StoreError("the database takes no groups, and the spool is full")

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

    async def forget(self, conditions: Conditions) -> None:
        """Answer no request again with a group that meets the conditions; what the database has is not touched."""
        await asyncio.to_thread(self._recent.erase, conditions)

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
        """The group that answered the request with this idempotency key, or None. Its scores are those of the answer.

        While the database cannot be asked, what waits in the spool is known, and what this process has logged lately.
        """
        if self.spool is not None:
            group = await asyncio.to_thread(self.spool.find, idempotency)
            if group is not None:
                return group
        try:
            self.health.raise_failure(StoreUnavailable)
            return await self._find(groups.c.idempotency == idempotency, as_answered=True)
        except StoreError:
            return await asyncio.to_thread(self._recent.find, idempotency)

    async def seen(self, group: Group) -> bool:
        """Whether a group of this tenant and prompt is among those that are newer than `group`'s retries can be.

        While the database cannot be asked: yes, to be on the safe side.
        """
        query = select(groups.c.id).where(
            groups.c.time >= group.time - RETRIES,
            groups.c.prompt_digest == group.prompt.digest,
            groups.c.tenant == clean_text(group.tenant),
        )
        try:
            self.health.raise_failure(StoreUnavailable)
            async with self.database.read() as connection:
                return (await connection.execute(query.limit(1))).first() is not None
        except StoreError:
            return True

    async def _find(self, condition: ColumnElement[bool], *, as_answered: bool = False) -> Group | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(groups).where(condition))).mappings().one_or_none()
            if row is None:
                return None
            query = select(candidates).where(candidates.c.group_id == row["id"]).order_by(candidates.c.index)
            rows = (await connection.execute(query)).mappings().all()
            group = group_of(dict(row), [dict(candidate) for candidate in rows])
            earlier = await read_earlier(connection, group) if as_answered else []
        return earlier[0] if earlier else group

    async def _write(self) -> None:
        running, entries = True, []
        try:
            while running:
                batch = [await self._waiting.get()]
                while len(batch) < MOST_AT_ONCE and not self._waiting.empty():
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
        """Store the entries, and tell those who wait."""
        new = [group for group, _ in entries]
        failure = StoreError("the group could not be stored")
        kept: dict[str, Kept] = {}
        try:
            found = await self._offer(new)
            kept, left = found.kept, [group for group in new if group.id not in found.kept]
            if left:
                kept = kept | await self._put_off(left, found.error or failure)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, and the writer go on
            failure = StoreError(f"the group could not be stored: {error}")
            failure.__cause__ = error
        self._pending -= len(entries)
        for group, done in entries:
            if done.done():  # its caller was cancelled
                continue
            if group.id in kept:
                done.set_result(kept[group.id])
            elif self.drop:
                done.set_result(Kept.DROPPED)
            else:
                done.set_exception(failure)

    async def _offer(self, new: list[Group]) -> Offer:
        """Have the database store the groups, unless it is known to take none."""
        if self._hurry.is_set():
            return Offer(error=StoreUnavailable("the service stops, and the database does not answer"))
        if self.spool is not None and self.health.down:
            return Offer(error=self.health.failure)
        found = await offer(new, self._store, self.health)
        if not found.kept and found.error is not None:
            self.health.failed(found.error, spool=self.spool is not None)
        keyed = [group for group in new if found.kept.get(group.id) is Kept.LOGGED and group.idempotency is not None]
        if keyed:
            await asyncio.to_thread(self._recent.add, keyed)
        return found

    async def _store(self, new: Sequence[Group]) -> dict[str, Kept]:
        if self._hurry.is_set():
            raise StoreUnavailable("the service stops, and the database does not answer")
        self._commit = commit = asyncio.create_task(store_groups(self.database, new))
        try:
            return await commit
        except asyncio.CancelledError:
            if self._hurry.is_set() and commit.cancelled():
                raise StoreUnavailable("the service stops, and the database does not answer") from None
            raise
        finally:
            self._commit = None

    async def _put_off(self, left: list[Group], error: StoreError) -> dict[str, Kept]:
        """Put groups into the spool, but for those whose request another one has answered. Raises StoreError."""
        if self.spool is None:
            raise error
        kept = await asyncio.to_thread(self._known, self.spool, left)
        new = [group for group in left if group.id not in kept]
        if new:
            await shielded(asyncio.to_thread(self.spool.append, new))
        return kept | dict.fromkeys((group.id for group in new), Kept.SPOOLED)

    def _known(self, spool: Spool, left: list[Group]) -> dict[str, Kept]:
        """Those whose idempotency key another group has that is in the spool, logged lately, or among them, too."""
        found: dict[str, Kept] = {}
        seen: set[str] = set()
        for group in left:
            key = group.idempotency
            if key is None:
                continue
            first = spool.find(key) or self._recent.find(key)
            if key in seen or (first is not None and first.id != group.id):
                found[group.id] = Kept.REPEATED
            seen.add(key)
        return found

    async def _watch_spool(self, replayer: Replayer) -> None:
        while True:
            await asyncio.sleep(self.retry)
            await replayer.empty()
