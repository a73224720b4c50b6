"""Training snapshots that hold what the log no longer has."""

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
    """Delete the groups of every snapshot under `runs_dir` that has a group which the log has not; their files.

    What the run has drawn for the snapshot's prompts is deleted with it, and a round that has not registered its
    version yet is closed by its trainer. What was registered keeps its record, with the counts. Raises OSError.
    """
    deleted = []
    for path in sorted(runs_dir.glob("*/snapshot/*.parquet")):
        if not await _is_whole(database, path):
            path.unlink()
            shutil.rmtree(path.parent.parent / "draws", ignore_errors=True)
            log.info("a snapshot held groups that were deleted from the log; it is deleted, too", file=str(path))
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
        return False  # nobody can read it, so nobody can say that it holds nothing of what was deleted
    return True


def _ids(path: Path) -> Iterator[list[str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(CHUNK, columns=["group_id"]):
            yield batch.column(0).to_pylist()
