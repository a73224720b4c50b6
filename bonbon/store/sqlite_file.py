"""What is SQLite's own: how connections are set up, and whether their files are still the ones that the path names."""

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
"""The write-ahead log and its index: SQLite relies on both, and on the database, being the files that it has opened."""
PAUSE = 1.0
"""Seconds, at least, from the end of the connections to files of before to the first one to the files of now."""
OPENED = "bonbon's files"
"""Key of a pooled connection's notes: the files that it has opened."""

Place = tuple[int, int] | None
"""Device and inode of a file; None where there is none."""


class SqliteFile:
    """The files of a database, watched: a path may be given to another file, or to none, under a running process.

    A connection then goes on with files that nobody finds again, and what it commits is lost. So connections are
    compared with the path before each transaction and after each commit. When they differ, every connection of this
    process is closed before one is opened to what is there now: SQLite takes a log that lies beside a database for that
    database's own.

    Args:
        busy: seconds that a connection waits for a lock that another one holds.
        create: make the file when there is none, until `opened` is set.
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
        """Whether connections have other files than the path names, and must be closed."""
        return self._changed_at is not None

    def watch(self, engine: Engine) -> None:
        """Set up the engine's connections, and have each compared with the path when it is taken from the pool."""

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
        """Raise StoreUnavailable unless what a connection has committed is in the files that the path names.

        `notes`: its connection's.
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
                log.warning("the database file is another one than before; it is opened", file=str(self.path))
                self._files = self._changed_at = None
        arguments[0] = f"file:{quote(str(self.path))}?mode={'rwc' if may_create else 'rw'}"
        options["uri"] = True

    def _configure(self, connection: Any, record: Any) -> None:
        # SQLAlchemy begins transactions itself (see _begin); the driver must not do it behind its back.
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            for pragma in (f"busy_timeout={self.busy * 1000:.0f}", *PRAGMAS):
                cursor.execute(f"PRAGMA {pragma}")
            self._log_ahead(cursor)
            cursor.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # opens the log
        except BaseException:
            connection.close()  # the pool has not got it yet: nobody else would end its thread
            raise
        cursor.close()
        record.info[OPENED] = opened = self._places()
        with self._lock:
            self._connections += 1
            self._files = self._files or opened

    def _log_ahead(self, cursor: Any) -> None:
        # Of connections that make a new file's log at once, all but one are told at once that it is locked, whatever
        # busy_timeout says.
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
        # With the first connection's, too: a file that was exchanged while this one was being opened is none of both.
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
        """Keep the log of the database that was here before from being read into the one that is here now."""
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
                f"the database file {self.path} is gone; put it back, or stop bonbon and restore a backup",
                why="its file is gone",
            )
        return StoreUnavailable(
            f"the database file {self.path} was deleted or replaced", why="its file was deleted or replaced"
        )

    def _places(self) -> tuple[Place, ...]:
        return tuple(_place(Path(f"{self.path}{suffix}")) for suffix in ("", *LOGS))


def empty_log(connection: Connection) -> None:
    """Leave nothing of deleted rows in the write-ahead log, which keeps older copies of pages. In no transaction.

    In the database itself rows are overwritten as they go (`secure_delete`).

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
    # A deferred transaction that turns into a writer fails at once when another writer came first; this one waits.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
