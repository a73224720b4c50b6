"""Runs the service in a separate process, as a user would."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx2

from bonbon.errors import BonbonError


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServiceProcess:
    """`bonbon serve` in a child process, with its log in a file.

    Args:
        environment: The service's settings, as `BONBON_...` variables.
        log: The file for its output.
        port: The port to listen on; 0 for a free one.
    """

    def __init__(self, environment: dict[str, str], log: Path, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, **environment, "BONBON_SERVICE__PORT": str(self.port)}
        self.log = log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, seconds: float = 300.0) -> None:
        """Starts the process and waits until the service is ready.

        Raises BonbonError, which quotes the end of the log, when it is not ready within `seconds`.
        """
        with self.log.open("ab") as output:
            # In a session of its own, so that Ctrl-C reaches the demo, which then shuts the service down.
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "bonbon",
                "serve",
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        async with httpx2.AsyncClient(base_url=self.url) as client:
            for _ in range(int(seconds / 0.25)):
                if self.process.returncode is not None:
                    break
                try:
                    if (await client.get("/health/ready")).status_code == 200:
                        return
                except httpx2.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(0.25)
        await self.stop()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise BonbonError(f"the service did not become ready; the end of {self.log}:\n{tail}")

    async def wait(self) -> int:
        """Waits until the process ends and returns its exit status."""
        assert self.process is not None
        return await self.process.wait()

    async def stop(self, seconds: float = 120.0) -> None:
        """Sends SIGTERM and waits until the service has drained.

        Kills the process and raises BonbonError when it has not ended after `seconds`.
        """
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise BonbonError(f"the service did not end within {seconds:g} s; see {self.log}") from None
