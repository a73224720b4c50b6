"""The database of the pair log and the registry: SQLite by default, PostgreSQL by URL."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Dialect, Engine, Insert, Table, create_engine, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from bonbon.concurrency.deadlines import Timeouts, give_up, within
from bonbon.errors import StoreError, UserError
from bonbon.extras import install
from bonbon.store.migration_copy import copy_before_migration
from bonbon.store.newer_schema import newer_schema_error
from bonbon.store.schema import current_revision, known_revisions, migrate
from bonbon.store.sqlite_file import SqliteFile, empty_log
from bonbon.store.store_errors import store_errors
from bonbon.store.transaction import GRACE, Transaction, late

T = TypeVar("T")

log = structlog.get_logger(__name__)

_migrating = Lock()
"""Serialises migrations, because Alembic passes the connection to them through a global variable."""


class Database:
    """Connections to the database, whose schema is kept at the newest migration.

    Args:
        url: An SQLAlchemy URL; `sqlite+aiosqlite:///file.db` and `postgresql+psycopg://...` are supported.
        create: Create a missing SQLite file; otherwise `start` refuses it.
        timeouts: Deadlines of calls.

    Raises:
        UserError: The URL names another kind of database.
    """

    def __init__(self, url: str, *, create: bool = True, timeouts: Timeouts = Timeouts()) -> None:
        self.create, self.timeouts = create, timeouts
        self.url = _parsed(url)
        if self.url.drivername not in ("sqlite+aiosqlite", "postgresql+psycopg"):
            raise UserError(
                f"database_url begins with {self.url.drivername!r}; "
                "use sqlite+aiosqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
                param="database_url",
            )
        if self.url.get_backend_name() == "sqlite" and (self.url.database or ":").startswith((":", "file:")):
            raise UserError(
                "database_url does not name a file that other connections can open; use sqlite+aiosqlite:///FILE",
                param="database_url",
            )
        self._engine: AsyncEngine | None = None
        self._file: SqliteFile | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._blocking: Engine | None = None
        self._left: set[asyncio.Future[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def engine(self) -> AsyncEngine:
        """The engine. Raises StoreError before `start`."""
        if self._engine is None:
            raise StoreError("the database has not been started")
        return self._engine

    async def start(self) -> None:
        """Connects and migrates.

        Raises UserError when the database cannot be reached, is missing (without `create`), or belongs to a newer
        release.
        """
        sqlite_file = self.url.get_backend_name() == "sqlite"
        if sqlite_file and not self.create:
            _refuse_missing(Path(self.url.database or ""))
        # Without the query, in which PostgreSQL accepts a password as well.
        url = self.url.set(query={}).render_as_string(hide_password=True)
        try:
            if sqlite_file:
                self._open_sqlite()
            else:
                self._open_postgresql()
            await self._migrate()
        except BaseException as error:
            await self.stop()
            match error:
                case StoreError():
                    raise UserError(f"cannot open the database {url}: {error}", param="database_url") from error
                case ModuleNotFoundError():
                    remedy = f"{url} needs {error.name}: {install('postgres')}"
                    raise UserError(remedy, param="database_url") from error
            raise
        if self._file is not None:
            self._file.opened = True

    def _open_sqlite(self) -> None:
        path, seconds = Path(self.url.database or ""), self.timeouts.call
        self._engine = create_async_engine(self.url, pool_timeout=seconds, hide_parameters=True)
        self._thread = ThreadPoolExecutor(1, "bonbon-database")
        self._blocking = create_engine(self.url.set(drivername="sqlite"), hide_parameters=True)
        self._file = SqliteFile(path, busy=seconds, create=self.create)
        for engine in (self._engine.sync_engine, self._blocking):
            self._file.watch(engine)

    def _open_postgresql(self) -> None:
        # Imports the driver, which a plain installation does not include.
        from bonbon.store.postgresql import CONNECTION_TIMEOUTS, PromptConnection, limit_statements

        self._engine = create_async_engine(
            self.url,
            pool_pre_ping=True,
            pool_timeout=self.timeouts.call,
            hide_parameters=True,
            connect_args={"async_creator_fn": PromptConnection.connect, **CONNECTION_TIMEOUTS},
        )
        limit_statements(self._engine.sync_engine, self.timeouts.call)

    async def _migrate(self) -> None:
        # Checked first, because a current database needs no write lock, which a busy service may hold.
        async with self.read() as connection:
            current = await connection.run_sync(current_revision)
        known = known_revisions()
        if current is not None and current not in known:
            raise newer_schema_error(self.url, current, known)
        if current != known[0]:
            if current is not None:
                await self._prepare_migration(current, known[0])
            # In a thread, so that two databases on one event loop can take turns without blocking it.
            migrating = asyncio.get_running_loop().run_in_executor(self._thread, self._migrate_blocking)
            try:
                with store_errors():
                    await within(self.timeouts.bulk + GRACE, migrating)
            except TimeoutError as error:
                raise late(self.timeouts.bulk) from error

    async def _prepare_migration(self, current: str, newest: str) -> None:
        if self._file is None:
            backup = "the one that pg_dump has made, if any"
        else:
            backup = str(await asyncio.to_thread(copy_before_migration, self._file.path, current))
        log.warning("migrating the database", revision=current, to=newest, backup=backup)

    def _migrate_blocking(self) -> None:
        if self._blocking is not None:
            with _migrating:
                _transact(self._blocking, migrate)
            return
        from bonbon.store.postgresql import CONNECTION_TIMEOUTS, limit_statements

        engine = create_engine(self.url, hide_parameters=True, connect_args=CONNECTION_TIMEOUTS)
        limit_statements(engine, self.timeouts.bulk)
        try:
            with _migrating:
                _transact(engine, migrate)
        finally:
            engine.dispose()

    async def stop(self) -> None:
        """Closes every connection, and abandons those that do not answer."""
        if self._left:
            await asyncio.wait(self._left, timeout=GRACE)
            await asyncio.gather(*(give_up(left, GRACE) for left in self._left))
        if self._thread is not None and self._blocking is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._blocking.dispose()
            self._thread = self._blocking = None
        if self._engine is not None:
            closing = asyncio.ensure_future(self._engine.dispose())
            with suppress(TimeoutError):
                await within(GRACE, closing)
            await give_up(closing, GRACE)
            self._engine = None

    @asynccontextmanager
    async def read(self, *, bulk: bool = False) -> AsyncIterator[Transaction]:
        """Opens a transaction for statements that read one consistent view. Raises StoreError when the database fails.

        `bulk` allows a longer time, for statements that read many groups.
        """
        async with self._transaction(bulk=bulk, **self._reading) as transaction:
            yield transaction

    @asynccontextmanager
    async def write(self, *, bulk: bool = False) -> AsyncIterator[Transaction]:
        """Opens a transaction that is committed at the end of the block. On SQLite it holds the only write lock
        throughout.

        Raises StoreError when the database fails. Nothing of the block is stored then, unless only the confirmation of
        the commit was lost.
        """
        async with self._transaction(bulk=bulk, writes=True) as transaction:
            yield transaction

    async def transact(self, function: Callable[[Connection], T]) -> T:
        """Returns the result of `function` in a transaction like `write`'s, all within the deadline of one call.

        On SQLite all of it runs in one thread, while `write` switches to a thread and back for every step of a
        statement.
        """
        if self._thread is None or self._blocking is None or self._file is None:
            work: asyncio.Future[T] = asyncio.ensure_future(self._transact_in_loop(function))
        else:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._thread, _transact, self._blocking, function, self._file)
        self._leave(work)
        try:
            with store_errors():
                return await within(self.timeouts.call + GRACE, work)
        except TimeoutError as error:
            work.cancel()  # a step that has not begun must not be executed any more
            raise late(self.timeouts.call) from error
        finally:
            self._close_changed()

    async def _transact_in_loop(self, function: Callable[[Connection], T]) -> T:
        async with self.write() as transaction:
            return await transaction.run_sync(function)

    @asynccontextmanager
    async def _transaction(self, *, bulk: bool, **options: Any) -> AsyncIterator[Transaction]:
        connection = self.engine.execution_options(**options).connect()
        transaction = Transaction(connection, self.timeouts.call)
        try:
            with store_errors():
                await transaction.call(connection.start())
                await transaction.call(connection.begin().start())
                if bulk:
                    await self._take_long(transaction)
                yield transaction
                await transaction.call(connection.commit())
                if self._file is not None and options.get("writes"):
                    await transaction.call(asyncio.to_thread(self._file.confirm, _notes(connection)))
        finally:
            self._close_changed()
            at_once = transaction.under_way
            ending = asyncio.create_task(transaction.end())
            self._leave(ending)
            if not at_once:
                await asyncio.wait({ending})

    async def _take_long(self, transaction: Transaction) -> None:
        transaction.seconds = self.timeouts.bulk
        if self._file is None:
            from bonbon.store.postgresql import limit_transaction

            await transaction.run_sync(lambda connection: limit_transaction(connection, self.timeouts.bulk))

    def _close_changed(self) -> None:
        """Closes idle connections when SQLite's files have changed, before new ones are opened."""
        if self._file is not None and self._file.changed and (self._closing is None or self._closing.done()):
            self._closing = asyncio.create_task(self._close_idle(), name="closing connections")
            self._leave(self._closing)

    async def _close_idle(self) -> None:
        # A connection taken from a pool now is compared with the files and closed.
        for _ in range(_idle(self.engine.sync_engine)):
            with suppress(StoreError, SQLAlchemyError):
                async with self.engine.connect():
                    pass
        if self._thread is not None and self._blocking is not None:
            blocking = self._blocking
            await asyncio.get_running_loop().run_in_executor(self._thread, _close_idle, blocking)

    def _leave(self, work: "asyncio.Future[Any]") -> None:
        """Remembers a step that continues after its caller has left."""
        self._left.add(work)
        work.add_done_callback(self._left.discard)

    async def lock(self, connection: Transaction, table: Table) -> None:
        """Keeps other transactions from writing `table` until this one ends. Readers continue. SQLite has one writer
        anyway.

        Waits while another transaction holds the lock.
        """
        if self.engine.dialect.name == "postgresql":
            await connection.execute(text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))

    async def overwrite_deleted(self) -> None:
        """Removes deleted rows from SQLite's files. In PostgreSQL, vacuum does this."""
        if self.engine.dialect.name == "sqlite":
            async with self._transaction(bulk=True) as transaction:
                await transaction.call(transaction.connection.rollback())
                await transaction.run_sync(empty_log)

    @property
    def _reading(self) -> dict[str, Any]:
        # SQLite reads from a snapshot anyway.
        return {"isolation_level": "REPEATABLE READ"} if self.engine.dialect.name == "postgresql" else {}

    def insert_new(self, table: Table) -> Insert:
        """Returns an insert that skips rows whose primary key exists."""
        return insert_new(table, self.engine.dialect)


def insert_new(table: Table, dialect: Dialect) -> Insert:
    """Returns an insert that skips rows whose primary key exists."""
    if dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


@asynccontextmanager
async def open_database(url: str, *, create: bool = True, timeouts: Timeouts = Timeouts()) -> AsyncIterator[Database]:
    """Yields a started database and stops it at the end of the block."""
    database = Database(url, create=create, timeouts=timeouts)
    await database.start()
    try:
        yield database
    finally:
        await database.stop()


def with_password(url: str, password: str) -> str:
    """Returns `url` with `password`. Raises UserError when it already has one or is not a URL."""
    parsed = _parsed(url)
    if parsed.password is not None:
        raise UserError("database_url contains a password and database_password is set as well: remove one of them")
    return parsed.set(password=password).render_as_string(hide_password=False)


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise UserError(f"database_url: {error}", param="database_url") from error
    except ValueError:
        # Its message quotes what precedes the host, which may be a part of a password.
        raise UserError(
            "the port in database_url is not a number; in a password, write @ as %40 and / as %2F, or set "
            "database_password",
            param="database_url",
        ) from None


def _notes(connection: AsyncConnection) -> dict[Any, Any]:
    """Returns the pool info of the connection behind this one, which must be open."""
    assert connection.sync_connection is not None
    return connection.sync_connection.info


def _transact(engine: Engine, function: Callable[[Connection], T], file: SqliteFile | None = None) -> T:
    with engine.execution_options(writes=True).connect() as connection:
        with connection.begin():
            result = function(connection)
        if file is not None:
            file.confirm(connection.info)
        return result


def _idle(engine: Engine) -> int:
    """Returns the number of idle connections in the engine's pool."""
    return engine.pool.checkedin() if isinstance(engine.pool, QueuePool) else 0


def _close_idle(engine: Engine) -> None:
    for _ in range(_idle(engine)):
        with suppress(StoreError, SQLAlchemyError), engine.connect():
            pass


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        raise UserError(
            f"there is no database {file}; `bonbon serve` creates it; --data-dir or --database names another",
            param="database_url",
        )
