"""Migrates the database schema to the newest revision."""

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def migrate(connection: Connection, revision: str = "head") -> None:
    """Migrates the schema to `revision`. Raises alembic's CommandError when the schema belongs to a newer release."""
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def is_current(connection: Connection) -> bool:
    """Returns whether the schema is at the newest revision."""
    heads = ScriptDirectory.from_config(_alembic()).get_heads()
    return set(MigrationContext.configure(connection).get_current_heads()) == set(heads)


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "bonbon.store:migrations")
    return config
