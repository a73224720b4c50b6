"""Deletes groups that have exceeded the retention period."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from bonbon.concurrency.shielded import end
from bonbon.erase import erase
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import count_purgeable
from bonbon.pairs.spool.set_aside import set_aside_in
from bonbon.store.database import Database

log = structlog.get_logger(__name__)


class Retention:
    """Deletes groups older than `days`, checking every `poll` seconds.

    Args:
        days: Age in days at which groups are deleted, with the training snapshots that contain them. With None, nothing
            is deleted.
    """

    def __init__(self, database: Database, runs_dir: Path, spool_dir: Path, *, days: float | None, poll: float) -> None:
        self.database, self.runs_dir, self.spool_dir = database, runs_dir, spool_dir
        self.days, self.poll = days, poll
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to delete, beginning at once."""
        if self.days is not None:
            self._worker = asyncio.create_task(self._work(timedelta(days=self.days)), name="retention")

    async def stop(self) -> None:
        """Stops; the next start deletes the rest."""
        if self._worker is not None:
            await end(self._worker)

    async def _work(self, age: timedelta) -> None:
        unfinished = False
        while True:
            try:
                conditions = Conditions(older_than=datetime.now(UTC) - age)
                await asyncio.to_thread(set_aside_in(self.spool_dir).erase, conditions)
                # Count first, because usually there is nothing to delete.
                if unfinished or await count_purgeable(self.database, conditions):
                    unfinished = True
                    erased = await erase(self.database, self.runs_dir, conditions, spool_dir=self.spool_dir)
                    unfinished = False
                    log.info("deleted old groups", groups=erased.groups, snapshots=len(erased.snapshots))
            except Exception:
                log.exception("cannot delete old groups; retrying later")
            await asyncio.sleep(self.poll)
