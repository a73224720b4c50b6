"""Deletes groups from everywhere: the pair log, the groups that the spool has set aside, and the training snapshots."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.migration_copies import purge_copies
from bonbon.pairs.deletion.purge import purge
from bonbon.pairs.spool.set_aside import set_aside_in
from bonbon.registry.lineage import Lineage, lineage
from bonbon.store.database import Database


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure deleted.

    `groups` is how many groups the database deleted, and `set_aside` how many the spool had set aside because no
    database accepted them. `lineage` lists what was trained on the deleted groups, and `snapshots` the deleted files
    that contained some of them.
    """

    groups: int
    lineage: Lineage
    snapshots: tuple[Path, ...]
    set_aside: int


async def erase(
    database: Database,
    runs_dir: Path,
    conditions: Conditions,
    *,
    spool_dir: Path,
    progress: Callable[[int], None] | None = None,
) -> Erased:
    """Deletes the groups that match `conditions`, and every snapshot under `runs_dir` that contains one of them.

    See `purge` for the conditions. Matching groups that the spool in `spool_dir` has set aside are deleted, too, and
    those in copies of an SQLite database from before migrations. Groups that still wait in the spool are skipped when
    the spool is replayed.

    Raises:
        ValueError: No condition is given.
        StoreUnavailable: Everything is deleted, but another process keeps SQLite's write-ahead log from being emptied;
            the next call empties it.
        StoreError, OSError: Something could not be deleted.
    """
    # Imported here because it imports pyarrow, which few commands need.
    from bonbon.pairs.deletion.stale_snapshots import delete_stale_snapshots

    learnt = await lineage(database, conditions)
    deleted = await purge(database, conditions, progress=progress)
    snapshots = await delete_stale_snapshots(database, runs_dir) if deleted else []
    await asyncio.to_thread(purge_copies, database.url, conditions)
    set_aside = await asyncio.to_thread(set_aside_in(spool_dir).erase, conditions)
    # This runs last because it may fail, and even if nothing was deleted because an earlier call may have failed here.
    await database.overwrite_deleted()
    return Erased(deleted, learnt, tuple(snapshots), set_aside)
