"""The server around the application: addresses, the reported URL, and signals."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import UserError
from bonbon.rewards.fake_reward import FakeReward
from service.app import create_app
from service.http_server.server import bind, run_server
from tests.support.service.running_service import BASE, WatchedEngine, settings_in


class Served:
    """Runs `run_server` in this process, which also receives the signals."""

    def __init__(self, app: FastAPI, host: str, drain_timeout: float = 30.0) -> None:
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.running = asyncio.create_task(
            run_server(app, host=host, port=0, drain_timeout=drain_timeout, ready=self.url.set_result)
        )

    async def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(60):
            await self.running


@asynccontextmanager
async def served(app: FastAPI, host: str = "127.0.0.1", drain_timeout: float = 30.0) -> AsyncIterator[Served]:
    server = Served(app, host, drain_timeout)
    async with asyncio.timeout(60):
        while not (server.url.done() or server.running.done()):
            await asyncio.sleep(0.005)
    try:
        yield server
    finally:
        if not server.running.done():
            server.running.cancel()
            await asyncio.wait({server.running})


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("localhost", "http://localhost:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        pytest.param("::", "http://127.0.0.1:", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        pytest.param("::1", "http://[::1]:", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
async def test_the_url_that_is_told_answers(tmp_path: Path, host: str, shown: str) -> None:
    """A wildcard address cannot be called, so the loopback address is reported instead."""
    async with served(create_app(settings_in(tmp_path), engine=WatchedEngine()), host) as server:
        url = await server.url
        assert url.startswith(shown)
        async with httpx2.AsyncClient(base_url=url) as client:
            response = await client.get("/health/ready")
        assert response.status_code == 200
        assert "server" not in response.headers
        await server.end()
    async with httpx2.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("/health/live")


@pytest.mark.parametrize("host", ["", "no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_refused(host: str) -> None:
    with pytest.raises(UserError, match="cannot listen on") as refusal:
        bind(host, 0)
    assert refusal.value.param in ("host", "port")


async def test_a_start_that_fails_reaches_the_caller_and_frees_the_port(tmp_path: Path) -> None:
    class Broken(FakeReward):
        async def start(self) -> None:
            raise UserError("the reward model is broken")

    async with served(create_app(settings_in(tmp_path), engine=FakeEngine(BASE), reward=Broken())) as server:
        async with asyncio.timeout(60):
            with pytest.raises(UserError, match="the reward model is broken"):
                await server.running
    assert not server.url.done()


async def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    starting = asyncio.Event()

    class Slow(FakeEngine):
        async def start(self) -> None:
            starting.set()
            await asyncio.Event().wait()

    server = Served(create_app(settings_in(tmp_path), engine=Slow(BASE)), "127.0.0.1")
    async with asyncio.timeout(60):
        await starting.wait()
    await server.end()
    assert not server.url.done()


async def test_a_caller_that_cancels_the_server_is_told_so(tmp_path: Path) -> None:
    async with served(create_app(settings_in(tmp_path), engine=WatchedEngine())) as server:
        await server.url
        server.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server.running


async def test_a_second_signal_cuts_off_what_is_in_flight(tmp_path: Path) -> None:
    """The first signal alone would wait for the request, which does not end."""
    app = create_app(settings_in(tmp_path, drain_timeout=600), engine=FakeEngine(BASE, delay=600))
    async with served(app, drain_timeout=600) as server, httpx2.AsyncClient(timeout=None) as client:
        url = await server.url
        asked = asyncio.create_task(client.post(f"{url}/v1/completions", json={"model": "bonbon", "prompt": "Hi"}))
        while not app.state.bonbon.router.in_flight:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        while not app.state.stopping:
            await asyncio.sleep(0.01)
        assert not server.running.done()
        await server.end()
        asked.cancel()  # a process that has ended would have closed its connection
        await asyncio.wait({asked})
