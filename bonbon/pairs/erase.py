"""Deletes groups from everywhere: the log, and the snapshots that training takes its pairs from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bonbon.database import Database
from bonbon.pairs.conditions import Conditions
from bonbon.pairs.lineage import Lineage, lineage
from bonbon.pairs.purge import purge


@dataclass(frozen=True, slots=True)
class Erased:
    """`groups` were deleted; `lineage` is what had learnt from them, `snapshots` are files that held some of them."""

    groups: int
    lineage: Lineage
    snapshots: tuple[Path, ...]


async def erase(
    database: Database, runs_dir: Path, conditions: Conditions, *, progress: Callable[[int], None] | None = None
) -> Erased:
    """Delete the groups that meet the conditions, see `purge`, and every snapshot under `runs_dir` that has some.

    Raises ValueError when no condition is given, StoreError and OSError.
    """
    # Brings in pyarrow, which few commands need.
    from bonbon.pairs.stale import delete_stale_snapshots

    learnt = await lineage(database, conditions)
    deleted = await purge(database, conditions, progress=progress)
    snapshots = await delete_stale_snapshots(database, runs_dir) if deleted else []
    return Erased(deleted, learnt, tuple(snapshots))
