"""The error for a database whose schema a newer release has migrated."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.engine import URL

from bonbon.errors import UserError
from bonbon.store.migration_copy import copies_of, revision_of


def newer_schema_error(url: URL, revision: str, known: Sequence[str]) -> UserError:
    """Returns the error for a database at `revision`, which is none of `known`, whose newest is the first.

    It names the backup that leads back to this release.
    """
    shown = url.set(query={}).render_as_string(hide_password=True)
    return UserError(
        f"{shown} was made by a newer bonbon: its schema has revision {revision}, and this release knows revisions up "
        f"to {known[0]}; upgrade bonbon, or stop every process that uses the database and {_way_back(url, known)} "
        "(docs/upgrading.md)",
        param="database_url",
    )


def _way_back(url: URL, known: Sequence[str]) -> str:
    if url.get_backend_name() != "sqlite":
        return (
            "restore the backup from before the upgrade into an empty database: pg_restore --exit-on-error --no-owner "
            "--dbname=URL bonbon.dump"
        )
    file = Path(url.database or "")
    copies = [copy for copy in copies_of(file) if revision_of(copy) in known]
    return f"put {copies[0] if copies else 'the backup from before the upgrade'} in the place of {file}"
