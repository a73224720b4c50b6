"""Deletes training snapshots with groups that the log no longer has."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from sqlalchemy import func, select

from bonbon.store.database import Database
from bonbon.store.tables import groups

log = structlog.get_logger(__name__)

CHUNK = 500


async def delete_stale_snapshots(database: Database, runs_dir: Path) -> list[Path]:
    """Deletes the groups of every snapshot under `runs_dir` that has a group missing from the log. Returns their files.

    The run's draws for the snapshot's prompts are deleted with it, and its trainer closes a round that has not
    registered its version yet. Registered versions keep their records, with the counts. Raises OSError.
    """
    deleted = []
    for path in sorted(runs_dir.glob("*/snapshot/*.parquet")):
        if not await _is_whole(database, path):
            path.unlink()
            shutil.rmtree(path.parent.parent / "draws", ignore_errors=True)
            log.info("deleted a snapshot that held groups deleted from the log", file=str(path))
            deleted.append(path)
    return deleted


async def _is_whole(database: Database, path: Path) -> bool:
    try:
        for ids in _ids(path):
            query = select(func.count()).select_from(groups).where(groups.c.id.in_(ids))
            async with database.read(bulk=True) as connection:
                if (await connection.execute(query)).scalar_one() != len(ids):
                    return False
    except pa.ArrowException:
        return False  # an unreadable snapshot cannot be checked for deleted groups
    return True


def _ids(path: Path) -> Iterator[list[str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(CHUNK, columns=["group_id"]):
            yield batch.column(0).to_pylist()
