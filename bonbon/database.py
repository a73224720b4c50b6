"""The one database of pair log and registry: SQLite by default, PostgreSQL by URL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Dialect, Insert, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from bonbon.errors import StoreError, UserError


class Database:
    """Connections to the database, its schema kept at the newest migration.

    Args:
        url: an SQLAlchemy URL; `sqlite+aiosqlite:///file.db` and `postgresql+psycopg://...` are supported.
        create: make the SQLite file when there is none; otherwise `start` refuses.

    Raises:
        UserError: the URL names another kind of database.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.create = create
        try:
            self.url = make_url(url)
        except ArgumentError as error:
            raise UserError(f"database_url: {error}", param="database_url") from error
        if self.url.drivername not in ("sqlite+aiosqlite", "postgresql+psycopg"):
            raise UserError(
                f"database_url begins with {self.url.drivername!r}; "
                "use sqlite+aiosqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
                param="database_url",
            )
        self._engine: AsyncEngine | None = None

    @property
    def engine(self) -> AsyncEngine:
        """Raises StoreError before `start`."""
        if self._engine is None:
            raise StoreError("the database has not been started")
        return self._engine

    async def start(self) -> None:
        """Connect and migrate. Raises UserError when the database cannot be reached."""
        sqlite_file = self.url.get_backend_name() == "sqlite"
        if sqlite_file and not self.create:
            _refuse_missing(Path(self.url.database or ""))
        self._engine = create_async_engine(self.url, pool_pre_ping=not sqlite_file, hide_parameters=True)
        if sqlite_file:
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        try:
            async with self.write() as connection:
                await connection.run_sync(migrate)
        except SQLAlchemyError as error:
            await self.stop()
            url = self.url.render_as_string(hide_password=True)
            raise UserError(f"cannot open the database {url}: {error}", param="database_url") from error

    async def stop(self) -> None:
        """Close every connection."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from: one consistent view."""
        async with self.engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end of the block. On SQLite it holds the only write lock from its start."""
        async with self.engine.execution_options(writes=True).begin() as connection:
            yield connection

    def insert_new(self, table: Table) -> Insert:
        """An insert that passes over rows whose primary key is there already."""
        return insert_new(table, self.engine.dialect)


def insert_new(table: Table, dialect: Dialect) -> Insert:
    """An insert that passes over rows whose primary key is there already."""
    if dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


@asynccontextmanager
async def open_database(url: str, *, create: bool = True) -> AsyncIterator[Database]:
    """A started database, stopped at the end of the block."""
    database = Database(url, create=create)
    await database.start()
    try:
        yield database
    finally:
        await database.stop()


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the schema to `revision`."""
    config = Config()
    config.set_main_option("script_location", "bonbon:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        raise UserError(
            f"there is no database {file}; `bonbon serve` makes it, --data-dir or --database names another one",
            param="database_url",
        )


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (see _begin_sqlite); the driver must not do it behind its back.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails at once when another writer came first; this one waits.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
