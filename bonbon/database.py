"""The one database of pair log and registry: SQLite by default, PostgreSQL by URL."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, CursorResult, Dialect, Engine, Insert, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql import Executable

from bonbon.errors import StoreError, UserError
from bonbon.uncancelled import uncancelled

T = TypeVar("T")

_migrating = Lock()
"""Alembic hands the connection to the migrations through a variable of the whole process."""

BUSY = 30.0
"""How long, in seconds, SQLite waits for a lock that another connection holds."""
PRAGMAS = (f"busy_timeout={BUSY * 1000:.0f}", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")
PATIENCE = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 15_000}
"""How long, in seconds and at the end in milliseconds, PostgreSQL's client waits for a server that says nothing."""


class Transaction:
    """What may be done inside `Database.read` and `Database.write`.

    A statement that has begun is awaited to its end when its caller is cancelled: the SQLite driver would go on with
    it in its thread, and could leave the write lock taken on a connection that nobody has any more.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(
        self, statement: Executable, parameters: list[dict[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run one statement, once for each of `parameters`; the result is buffered."""
        return await uncancelled(self._connection.execute(statement, parameters))

    async def run_sync(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on the synchronous connection."""
        return await uncancelled(self._connection.run_sync(function))


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
        self.url = _parsed(url)
        if self.url.drivername not in ("sqlite+aiosqlite", "postgresql+psycopg"):
            raise UserError(
                f"database_url begins with {self.url.drivername!r}; "
                "use sqlite+aiosqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
                param="database_url",
            )
        self._engine: AsyncEngine | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._blocking: Engine | None = None

    @property
    def engine(self) -> AsyncEngine:
        """Raises StoreError before `start`."""
        if self._engine is None:
            raise StoreError("the database has not been started")
        return self._engine

    async def start(self) -> None:
        """Connect and migrate.

        Raises UserError when the database cannot be reached, is missing (without `create`), or is of a newer release.
        """
        sqlite_file = self.url.get_backend_name() == "sqlite"
        if sqlite_file and not self.create:
            _refuse_missing(Path(self.url.database or ""))
        url = self.url.render_as_string(hide_password=True)
        try:
            self._engine = create_async_engine(
                self.url,
                pool_pre_ping=not sqlite_file,
                hide_parameters=True,
                connect_args={} if sqlite_file else PATIENCE,
            )
            if sqlite_file:
                self._thread = ThreadPoolExecutor(1, "bonbon-database")
                self._blocking = create_engine(self.url.set(drivername="sqlite"), hide_parameters=True)
                for engine in (self._engine.sync_engine, self._blocking):
                    event.listen(engine, "connect", _configure_sqlite)
                    event.listen(engine, "begin", _begin_sqlite)
            await self._migrate()
        except BaseException as error:
            await self.stop()
            match error:
                case StoreError():
                    raise UserError(f"cannot open the database {url}: {error}", param="database_url") from error
                case ModuleNotFoundError():
                    remedy = f"{url} needs {error.name}: pip install 'bonbon[postgres]'"
                    raise UserError(remedy, param="database_url") from error
                case CommandError():
                    raise UserError(
                        f"{url} was made by a newer bonbon ({error}); upgrade bonbon or name another database",
                        param="database_url",
                    ) from error
            raise

    async def _migrate(self) -> None:
        # Looked at first: a database that is up to date needs no write lock, which a busy service may hold.
        async with self.read() as connection:
            current = await connection.run_sync(_is_current)
        if not current:
            # In a thread, to its end: two databases of one event loop take turns without stopping it.
            migrating = asyncio.get_running_loop().run_in_executor(self._thread, self._migrate_blocking)
            async with _store_errors():
                await uncancelled(migrating)

    def _migrate_blocking(self) -> None:
        engine = self._blocking or create_engine(self.url, hide_parameters=True, connect_args=PATIENCE)
        try:
            with _migrating:
                _transact(engine, migrate)
        finally:
            if engine is not self._blocking:
                engine.dispose()

    async def stop(self) -> None:
        """Close every connection."""
        if self._thread is not None and self._blocking is not None:
            await uncancelled(asyncio.to_thread(self._thread.shutdown))
            self._blocking.dispose()
            self._thread = self._blocking = None
        if self._engine is not None:
            await uncancelled(self._engine.dispose())
            self._engine = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Statements that read: one consistent view. Raises StoreError when the database fails."""
        async with self._transaction(**self._reading) as transaction:
            yield transaction

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """A transaction, committed at the end of the block. On SQLite it holds the only write lock from its start.

        Raises StoreError when the database fails; nothing of the block is stored then.
        """
        async with self._transaction(writes=True) as transaction:
            yield transaction

    async def transact(self, function: Callable[[Connection], T]) -> T:
        """The result of `function` in a transaction like `write`'s.

        On SQLite all of it runs in one thread; `write` goes to a thread and back for every step of each statement.
        """
        if self._thread is None or self._blocking is None:
            async with self.write() as transaction:
                return await transaction.run_sync(function)
        writing = asyncio.get_running_loop().run_in_executor(self._thread, _transact, self._blocking, function)
        async with _store_errors():
            return await uncancelled(writing)

    @asynccontextmanager
    async def _transaction(self, **options: Any) -> AsyncIterator[Transaction]:
        async with _store_errors():
            connection = self.engine.execution_options(**options).connect()
            try:
                await uncancelled(connection.start())
                await uncancelled(connection.begin().start())
                yield Transaction(connection)
                await uncancelled(connection.commit())
            finally:
                if connection.sync_connection is not None:
                    await uncancelled(connection.close())

    async def lock(self, connection: Transaction, table: Table) -> None:
        """Let no other transaction write `table` until this one ends; readers go on. On SQLite no other writes anyway.

        Waits while another holds the lock.
        """
        if self.engine.dialect.name == "postgresql":
            await connection.execute(text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))

    async def overwrite_deleted(self) -> None:
        """Leave nothing of deleted rows in SQLite's files; PostgreSQL's own vacuum does this there."""
        if self.engine.dialect.name == "sqlite":
            async with _store_errors(), self.engine.connect() as connection:
                await uncancelled(connection.run_sync(_empty_log))

    @property
    def _reading(self) -> dict[str, Any]:
        # SQLite reads from a snapshot anyway.
        return {"isolation_level": "REPEATABLE READ"} if self.engine.dialect.name == "postgresql" else {}

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


def with_password(url: str, password: str) -> str:
    """`url` with `password` in it. Raises UserError when it has one already, or is no URL."""
    parsed = _parsed(url)
    if parsed.password is not None:
        raise UserError("database_url has a password, and database_password is set: give one of them")
    return parsed.set(password=password).render_as_string(hide_password=False)


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise UserError(f"database_url: {error}", param="database_url") from error


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the schema to `revision`."""
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _transact(engine: Engine, function: Callable[[Connection], T]) -> T:
    with engine.execution_options(writes=True).begin() as connection:
        return function(connection)


@asynccontextmanager
async def _store_errors() -> AsyncIterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise StoreError(f"the database failed: {reason}") from error


def _is_current(connection: Connection) -> bool:
    return set(MigrationContext.configure(connection).get_current_heads()) == set(
        ScriptDirectory.from_config(_alembic()).get_heads()
    )


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "bonbon:migrations")
    return config


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
    try:
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        _log_ahead(cursor)
    except BaseException:
        connection.close()  # the pool has not got it yet: nobody else would end its thread
        raise
    cursor.close()


def _log_ahead(cursor: Any) -> None:
    # Of connections that make a new file's log at once, all but one are told at once that it is locked, whatever
    # busy_timeout says.
    end = time.monotonic() + BUSY
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _empty_log(connection: Connection) -> None:
    # Pages are zeroed as rows go (secure_delete), but the write-ahead log keeps older copies. Not inside a transaction.
    connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails at once when another writer came first; this one waits.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
