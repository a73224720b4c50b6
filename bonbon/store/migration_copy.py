"""Copies an SQLite database before a migration, so that the release before can be gone back to."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from bonbon.errors import UserError
from bonbon.files.fsync import fsync

_SUFFIX = ".revision-"


def copies_of(database: Path) -> list[Path]:
    """Returns the copies of a database that were made before migrations, the one of the newest revision first."""
    return sorted(database.parent.glob(f"{database.name}{_SUFFIX}[0-9][0-9][0-9][0-9]"), reverse=True)


def revision_of(copy: Path) -> str:
    """Returns the schema's revision in a copy, by its name."""
    return copy.name.rpartition(_SUFFIX)[2]


def copy_before_migration(database: Path, revision: str) -> Path:
    """Returns a durable copy of `database`, made beside it while its schema is at `revision`.

    An older copy of the same name is replaced. When another process migrates the database meanwhile, that process has
    made the copy.

    Raises UserError when the copy cannot be written.
    """
    copy = database.with_name(f"{database.name}{_SUFFIX}{revision}")
    partial = copy.with_name(f"{copy.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM INTO ?", (str(partial),))
        if _stored_revision(partial) == revision:
            partial.chmod(database.stat().st_mode)
            fsync(partial)
            partial.replace(copy)
            fsync(copy.parent)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"the database {database} is not migrated, because the copy before it, {copy}, cannot be written: {error}; "
            f"free {database.stat().st_size / 1e6:,.0f} MB there",
            param="database_url",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return copy


def _stored_revision(database: Path) -> str | None:
    with closing(sqlite3.connect(database)) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])
