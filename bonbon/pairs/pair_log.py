"""Appends to the pair log. An append returns when the group is durable."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, insert, select

from bonbon.concurrency.shielded import end, shielded
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
"""Seconds that `stop` gives the database to commit waiting groups before they go to the spool."""

Waiting = tuple[Group, "asyncio.Future[Kept]"]


class PairLog:
    """Commits groups in batches: one writer commits all waiting groups together, so that one fsync serves many appends.

    Groups that the database does not accept go to the spool, and from there to the database later.

    Args:
        database: A started database.
        spool: Without a spool, an append fails when the database does.
        drop: Drop groups that neither database nor spool accepts instead of failing.
        retry: Seconds between attempts to empty the spool.
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
        """Starts the writer and adopts what an earlier process left in the spool."""
        if self._writer is None:
            self._open = True
            self._hurry.clear()
            self._writer = asyncio.create_task(self._write(), name="pair log")
            if self.spool is not None:
                # Before any request, so that a retry is recognised by the group of its first attempt.
                replayer = Replayer(self.database, self.spool, self.health)
                await replayer.empty()
                self._replayer = asyncio.create_task(self._watch_spool(replayer), name="spool")

    async def stop(self) -> None:
        """Refuses new groups, commits waiting ones and ends. Groups in the spool are left for the next start.

        Waits for the database for at most `LAST_COMMIT` seconds.
        """
        self._open = False
        writer, self._writer = self._writer, None
        replayer, self._replayer = self._replayer, None
        if replayer is not None:
            await end(replayer)
        if writer is not None:
            self._waiting.put_nowait(None)
            await asyncio.wait({writer}, timeout=LAST_COMMIT)
            self._hurry.set()
            if self._commit is not None:
                self._commit.cancel()
            await writer
        if self.spool is not None:
            self.spool.close()

    @property
    def waiting(self) -> int:
        """Number of groups that are not yet durable."""
        return self._pending

    @property
    def can_wait(self) -> bool:
        """Whether groups are accepted, or may be dropped, while the database does not accept them."""
        return self.drop or (self.spool is not None and self.spool.accepts_groups)

    def check(self) -> None:
        """Raises StoreError when an append could only fail now. Call it before drawing."""
        if self.health.down and not self.can_wait:
            raise StoreError("the database accepts no groups, and the spool is full")

    async def append(self, group: Group) -> Kept:
        """Stores a group, which is durable on return. Appending the same id again does nothing.

        The group is stored even if the caller is cancelled.

        Raises:
            StoreError: Neither database nor spool accepted the group, or the log is not running; the group is not
                stored.
        """
        if not self._open:
            raise StoreError("the pair log is not running")
        done: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._pending += 1
        self._waiting.put_nowait((group, done))
        return await done

    async def forget(self, conditions: Conditions) -> None:
        """Stops answering repeated requests with groups that meet the conditions. The database is not changed."""
        await asyncio.to_thread(self._recent.erase, conditions)

    async def append_comparison(self, comparison: Comparison) -> LiveWinRate:
        """Stores and counts an audit's comparison, and returns the updated live win rate.

        Raises StoreError, also when the comparison's group was deleted.
        """
        async with self.database.write() as connection:
            await connection.execute(insert(comparisons), [{"id": time_ordered_id(), **asdict(comparison)}])
            return await count(self.database, connection, comparison)

    async def append_feedback(self, word: Feedback, *, tenant: str = "") -> None:
        """Stores feedback on a group of `tenant`.

        Raises UserError for a group or candidate that does not exist, and StoreError.
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
        """Returns the group with this id, or None. Raises StoreError."""
        return await self._find(groups.c.id == group_id)

    async def repeated(self, idempotency: str) -> Group | None:
        """Returns the group that answered the request with this idempotency key, or None, with the scores of that
        answer.

        While the database is unavailable, only groups in the spool and groups that this process logged recently are
        found.
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
        """Returns whether the log has a recent group of this tenant and prompt, which `group` may be a retry of.

        Returns True while the database is unavailable, to be on the safe side.
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
            # Nobody awaits a cancelled writer.
            self._open = False
            for _, done in entries:
                done.cancel()
            while not self._waiting.empty():
                if entry := self._waiting.get_nowait():
                    entry[1].cancel()

    async def _settle(self, entries: list[Waiting]) -> None:
        """Stores the entries and completes their callers' futures."""
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
        """Offers the groups to the database, unless it is known to be unavailable."""
        if self._hurry.is_set():
            return Offer(error=StoreUnavailable("the service is stopping and the database does not answer"))
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
            raise StoreUnavailable("the service is stopping and the database does not answer")
        self._commit = commit = asyncio.create_task(store_groups(self.database, new))
        try:
            return await commit
        except asyncio.CancelledError:
            if self._hurry.is_set() and commit.cancelled():
                raise StoreUnavailable("the service is stopping and the database does not answer") from None
            raise
        finally:
            self._commit = None

    async def _put_off(self, left: list[Group], error: StoreError) -> dict[str, Kept]:
        """Puts groups into the spool, except those whose request another group has answered. Raises StoreError."""
        if self.spool is None:
            raise error
        kept = await asyncio.to_thread(self._known, self.spool, left)
        new = [group for group in left if group.id not in kept]
        if new:
            await shielded(asyncio.to_thread(self.spool.append, new))
        return kept | dict.fromkeys((group.id for group in new), Kept.SPOOLED)

    def _known(self, spool: Spool, left: list[Group]) -> dict[str, Kept]:
        """Returns the groups whose idempotency key is in the spool, was logged recently, or occurs earlier in the
        list."""
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
