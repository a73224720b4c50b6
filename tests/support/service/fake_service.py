"""Runs `bonbon serve` on the fake engine in a separate process, which fails like a real one and starts in a second."""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from typer.testing import Result

from bonbon.cli.keys_cli import app as keys_app
from bonbon.demo.service_process import ServiceProcess
from tests.support.data.stores import run

T = TypeVar("T")

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": "bonbon", "messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 12,
}  # fmt: skip


def fake_service(directory: Path, **settings: object) -> ServiceProcess:
    """Returns the service, not started. `settings` belong to the section `service`, in the form of environment
    variables.
    """
    environment = {"BONBON_ENGINE": "fake", "BONBON_DATA_DIR": str(directory / "data"), "BONBON_N": "4"}
    environment |= {f"BONBON_SERVICE__{name.upper()}": str(value) for name, value in settings.items()}
    return ServiceProcess(environment, directory / "service.log")


@asynccontextmanager
async def started(service: ServiceProcess) -> AsyncIterator[ServiceProcess]:
    """Starts the service, which is ready within the block, and stops it at the end."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


def client_of(service: ServiceProcess, key: str | None = None) -> httpx2.AsyncClient:
    """Returns a client that sends this key."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=service.url, headers=headers, timeout=60.0)


def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Returns the result of `work` in a thread, because commands run their own event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments).result()


def keys(directory: Path, *arguments: object) -> Result:
    """Runs `bonbon keys` on the data directory of a service in `directory`."""
    result = in_thread(run, keys_app, *arguments, "--data-dir", directory / "data")
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def new_key(directory: Path, name: str, *options: object) -> tuple[str, str]:
    """Creates a key and returns its id and the key."""
    made = json.loads(keys(directory, "create", name, *options, "--json").stdout)
    return made["id"], made["key"]


def rows(directory: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Returns committed rows of the service's database, read by another connection."""
    with closing(sqlite3.connect(directory / "data" / "bonbon.db")) as connection:
        return connection.execute(query, values).fetchall()
