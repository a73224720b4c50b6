"""Deletes groups from the copies of an SQLite database that were made before migrations."""

from pathlib import Path

from sqlalchemy import create_engine, delete, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.store.migration_copy import copies_of
from bonbon.store.store_errors import store_errors
from bonbon.store.tables import groups


def purge_copies(url: URL, conditions: Conditions) -> None:
    """Deletes the groups that meet the conditions, with everything that belongs to them, from each copy of `url`.

    A copy keeps the schema of its revision, which has had the columns of the conditions since the first release.

    Raises StoreError when a copy cannot be changed.
    """
    if url.get_backend_name() != "sqlite":
        return
    for copy in copies_of(Path(url.database or "")):
        engine = create_engine(url.set(drivername="sqlite", database=str(copy)), poolclass=NullPool)
        event.listen(engine, "connect", _delete_thoroughly)
        with store_errors(), engine.begin() as connection:
            connection.execute(delete(groups).where(conditions.clause))


def _delete_thoroughly(connection: object, _record: object) -> None:
    for pragma in ("foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]
