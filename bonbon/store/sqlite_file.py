"""SQLite specifics: connection setup, and detection of a database file that was replaced or deleted."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import structlog
from sqlalchemy import Connection, Engine, event
from sqlalchemy.util import await_

from bonbon.errors import StoreUnavailable

log = structlog.get_logger(__name__)

PRAGMAS = ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")
LOGS = ("-wal", "-shm")
"""Suffixes of the write-ahead log and its index. SQLite relies on them and the database staying the files it opened."""
PAUSE = 1.0
"""Minimum seconds between closing the connections to the old files and opening the new ones."""
OPENED = "bonbon's files"
"""Key under which a pooled connection's info stores the files it opened."""

Place = tuple[int, int] | None
"""Device and inode of a file; None when it does not exist."""


class SqliteFile:
    """Watches the files of a database, because another file may be put in their place while a process has them open.

    A connection would then continue with files that no other process can find, and lose what it commits. Connections
    are therefore compared with the path before each transaction and after each commit. On a difference, every
    connection of this process is closed before a new one is opened, because SQLite takes any log beside a database for
    that database's own.

    Args:
        busy: Seconds that a connection waits for a lock held by another one.
        create: Create a missing file, until `opened` is set.
    """

    def __init__(self, path: Path, *, busy: float, create: bool) -> None:
        self.path, self.busy, self.create = path.absolute(), busy, create
        self.opened = False
        self._lock = Lock()
        self._files: tuple[Place, ...] | None = None
        self._connections = 0
        self._changed_at: float | None = None

    @property
    def changed(self) -> bool:
        """Returns whether connections have other files open than those at the path, and must be closed."""
        return self._changed_at is not None

    def watch(self, engine: Engine) -> None:
        """Sets up the engine's connections, and compares each with the path when it is taken from the pool."""

        def off_the_loop(look: Callable[..., None]) -> Callable[..., None]:
            if not engine.dialect.is_async:
                return look
            return lambda *arguments: await_(asyncio.to_thread(look, *arguments))

        event.listen(engine, "do_connect", off_the_loop(self._before_connecting))
        event.listen(engine, "connect", self._configure)
        event.listen(engine, "checkout", off_the_loop(self._compare))
        event.listen(engine, "close", self._closed)
        event.listen(engine, "begin", _begin)

    def confirm(self, notes: dict[Any, Any]) -> None:
        """Raises StoreUnavailable unless what a connection has committed is in the files at the path.

        `notes` is the connection's pool info.
        """
        if notes[OPENED] != self._places():
            self._note_change()
            raise self._gone_or_replaced()

    def _before_connecting(self, _dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        may_create = self.create and not self.opened
        main = _place(self.path)
        with self._lock:
            if self._changed_at is not None and (self._connections or time.monotonic() < self._changed_at + PAUSE):
                raise self._gone_or_replaced()
            if main is None and not may_create:
                raise self._gone_or_replaced()
            if self._changed_at is not None:
                self._put_log_away(main)
                log.warning("the database file was replaced; opening the new one", file=str(self.path))
                self._files = self._changed_at = None
        arguments[0] = f"file:{quote(str(self.path))}?mode={'rwc' if may_create else 'rw'}"
        options["uri"] = True

    def _configure(self, connection: Any, record: Any) -> None:
        # SQLAlchemy begins transactions itself (see _begin); the driver must not do so implicitly.
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            for pragma in (f"busy_timeout={self.busy * 1000:.0f}", *PRAGMAS):
                cursor.execute(f"PRAGMA {pragma}")
            self._log_ahead(cursor)
            cursor.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # opens the log
        except BaseException:
            connection.close()  # the pool does not know it yet, so nothing else would end its thread
            raise
        cursor.close()
        record.info[OPENED] = opened = self._places()
        with self._lock:
            self._connections += 1
            self._files = self._files or opened

    def _log_ahead(self, cursor: Any) -> None:
        # When several connections create a new file's log at once, all but one fail immediately with a lock error,
        # whatever busy_timeout says.
        end = time.monotonic() + self.busy
        while True:
            try:
                cursor.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def _compare(self, _connection: Any, record: Any, _proxy: Any) -> None:
        # Checked for the first connection as well, because a file replaced during opening is neither the old nor the
        # new one.
        if self.changed or not record.info[OPENED] == self._files == self._places():
            self._note_change()
            raise self._gone_or_replaced()

    def _closed(self, _connection: Any, record: Any) -> None:
        if record.info.pop(OPENED, None) is not None:
            with self._lock:
                self._connections -= 1

    def _note_change(self) -> None:
        with self._lock:
            if self._changed_at is None:
                log.error("the database file was deleted or replaced", file=str(self.path))
                self._changed_at = time.monotonic()

    def _put_log_away(self, main: Place) -> None:
        """Moves the log of the previous database away, so that SQLite does not apply it to the current one."""
        before = self._files
        if before is None or before[0] == main:
            return
        for suffix, place in zip(LOGS, before[1:], strict=True):
            beside = Path(f"{self.path}{suffix}")
            if place is not None and _place(beside) == place:
                beside.rename(f"{beside}.replaced")

    def _gone_or_replaced(self) -> StoreUnavailable:
        if _place(self.path) is None:
            return StoreUnavailable(
                f"the database file {self.path} no longer exists; put it back, or stop bonbon and restore a backup",
                why="its file is gone",
            )
        return StoreUnavailable(
            f"the database file {self.path} was deleted or replaced", why="its file was deleted or replaced"
        )

    def _places(self) -> tuple[Place, ...]:
        return tuple(_place(Path(f"{self.path}{suffix}")) for suffix in ("", *LOGS))


def empty_log(connection: Connection) -> None:
    """Empties the write-ahead log, which keeps older copies of deleted rows. Must be called outside a transaction.

    In the database itself, deletion overwrites rows (`secure_delete`).

    Raises StoreUnavailable when another process reads the database for longer than connections wait for each other.
    """
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    busy, *_ = cursor.fetchone() or (0,)
    if busy:
        raise StoreUnavailable(
            "the rows are deleted, but their text stays in the write-ahead log as long as another process reads the "
            "database; delete again when it has ended",
            why="another process reads the database",
        )


def _place(path: Path) -> Place:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begin(connection: Connection) -> None:
    # A deferred transaction that becomes a writer fails at once if another writer came first; an immediate one waits.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
