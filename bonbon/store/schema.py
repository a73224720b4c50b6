"""The schema's revisions: which one a database has, and migrating it to the newest."""

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def migrate(connection: Connection, revision: str = "head") -> None:
    """Migrates the schema to `revision`."""
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def current_revision(connection: Connection) -> str | None:
    """Returns the revision that the schema has, or None when the database is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def known_revisions() -> list[str]:
    """Returns the revisions that this release knows, the newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()]


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "bonbon.store:migrations")
    return config
