"""Runs the service in a process forked from one with all imports done, so that it starts in a fraction of a second."""

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bonbon.demo.service_process import free_port

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["service.app", "service.http_server.server", "aiosqlite", "psycopg", "uvloop", "httptools"]
CONTEXT.set_forkserver_preload(PRELOADED)


class ForkedService:
    """A service on the fake engine that tests kill and start again.

    Args:
        directory: The parent of its data directory; standard error goes to `service.log` there.
        settings: Arguments of `load_settings`.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory, self.port = directory, free_port()
        self.settings = {"engine": "fake", "n": 4, "data_dir": directory / "data"} | settings
        self.settings["service"] = {"port": self.port} | settings.get("service", {})
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Any = None

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    async def start(self) -> None:
        """Starts the service and waits until it answers."""
        ours, theirs = CONTEXT.Pipe(duplex=False)
        arguments = (self.settings, theirs, self.directory / "service.log")
        self._process = CONTEXT.Process(
            target=_run, args=arguments, daemon=True
        )  # a daemon, so that a failing test leaves no process behind
        await asyncio.to_thread(self._process.start)
        theirs.close()
        try:
            await asyncio.to_thread(ours.recv)
        except EOFError:
            raise RuntimeError((self.directory / "service.log").read_text()[-3000:]) from None

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    async def stop(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        if self._process.exitcode is None:
            os.kill(self.pid, signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        """Waits for the end and returns the exit status."""
        await asyncio.to_thread(self._process.join)
        status: int = self._process.exitcode
        return status


def _run(settings: dict[str, Any], started: Connection, log: Path) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    import uvloop

    from bonbon.observability.logs import configure_logs
    from bonbon.settings import load_settings
    from service.app import create_app
    from service.http_server.exit_deadline import Backstop
    from service.http_server.garbage_collection import settle_garbage
    from service.http_server.server import run_server

    def ready(url: str) -> None:
        settle_garbage()
        started.send(url)

    configure_logs(json=True)
    loaded = load_settings(**settings)
    service = loaded.service
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            run_server(
                create_app(loaded),
                host=service.host,
                port=service.port,
                drain_timeout=service.drain_timeout,
                ready=ready,
                backstop=Backstop(),
            )
        )
