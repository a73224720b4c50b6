"""Deletes groups from everywhere: the log, what was set aside from a spool, and the snapshots of training."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import purge
from bonbon.pairs.spool.set_aside import set_aside_in
from bonbon.registry.lineage import Lineage, lineage
from bonbon.store.database import Database


@dataclass(frozen=True, slots=True)
class Erased:
    """`groups` were deleted; `lineage` is what had learnt from them, `snapshots` are files that held some of them.

    `set_aside` counts those that no database had taken.
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
    """Delete the groups that meet the conditions, see `purge`, and every snapshot under `runs_dir` that has some.

    With them go those that the spool in `spool_dir` has set aside; what still waits there is left out when it is
    replayed.

    Raises:
        ValueError: no condition is given.
        StoreUnavailable: everything is deleted, but another process keeps SQLite's write-ahead log from being emptied;
            the next call empties it.
        StoreError, OSError: something could not be deleted.
    """
    # Brings in pyarrow, which few commands need.
    from bonbon.pairs.deletion.stale_snapshots import delete_stale_snapshots

    learnt = await lineage(database, conditions)
    deleted = await purge(database, conditions, progress=progress)
    snapshots = await delete_stale_snapshots(database, runs_dir) if deleted else []
    set_aside = await asyncio.to_thread(set_aside_in(spool_dir).erase, conditions)
    # Last, because it may fail; and even if nothing was deleted, because an earlier call may have failed here.
    await database.overwrite_deleted()
    return Erased(deleted, learnt, tuple(snapshots), set_aside)
