"""Run by Alembic with the connection from `bonbon.store.schema.migrate`."""

from alembic import context
from sqlalchemy import text

from bonbon.store.tables import metadata

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Several processes may start at once. One migrates; the others wait and find nothing to do.
    connection.execute(text("SELECT pg_advisory_xact_lock(6406008320)"))
context.configure(connection=connection, target_metadata=metadata, compare_type=True)
context.run_migrations()
