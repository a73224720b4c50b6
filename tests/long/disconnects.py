"""Runs clients that disconnect at any moment, and then checks that the service has released everything.

python -m tests.long.disconnects --disconnects 50000
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress

from tests.support.service.forked_service import ForkedService
from tests.support.service.raw_http import request
from tests.support.targets import told

CLIENTS = 48
BODIES: list[dict[str, Any]] = [
    {"model": "bonbon"},
    {"model": "bonbon", "stream": True},
    {"model": "base", "stream": True},
    {"model": "bonbon", "store": False, "n": 2},
]
LIMITS = {"max_tokens_in_flight": 1024, "max_waiting": 32, "max_wait": 0.2}
"""The capacity is small, so that most requests wait and are admitted, displaced or timed out as their clients leave."""
GAUGES = (
    "bonbon_tokens_in_flight",
    "bonbon_requests_waiting",
    "bonbon_answers_in_flight",
    "bonbon_pair_log_waiting",
    "bonbon_stream_buffer_bytes",
)
WARM = 0.2
"""Share of the disconnects after which memory is expected to stay constant."""


@dataclass(frozen=True)
class Held:
    """Resources held after a number of disconnects: `left` are gauges that are not 0, `memory` is in MiB."""

    disconnects: int
    left: dict[str, float]
    descriptors: int
    memory: float
    status: int


@dataclass
class Disconnects:
    """Resources held at the start, in between and at the end."""

    held: list[Held] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Lists the resources that were not released."""
        first, found = self.held[0], []
        for held in self.held:
            if held.left or held.status != 200:
                found.append(f"after {held.disconnects}: {held.left}, an ordinary request is a {held.status}")
            if held.descriptors > first.descriptors + 8:
                found.append(f"after {held.disconnects}: {held.descriptors} descriptors, {first.descriptors} before")
        return found

    @property
    def growth(self) -> float:
        """Memory at the end divided by memory after warm-up."""
        warm = next(held for held in self.held if held.disconnects >= WARM * self.held[-1].disconnects)
        return self.held[-1].memory / warm.memory


async def disconnects(directory: Path, count: int, *, looks: int, seed: int = 0, progress: bool = False) -> Disconnects:
    """Disconnects `count` times, and checks the held resources `looks` times while the service is idle."""
    service = ForkedService(directory, engine_options={"delay": 0.002}, service=LIMITS)
    await service.start()
    rng, found = random.Random(seed), Disconnects()
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("hanging up", total=count)

        async def hang_up(rng: random.Random, left: Iterator[int]) -> None:
            for _ in left:
                await _hang_up(service.port, rng)
                bar.advance(task)

        found.held.append(await _look(service, 0))
        for look in range(looks):
            left = iter(range(count * look // looks, count * (look + 1) // looks))
            await asyncio.gather(*(hang_up(random.Random(rng.random()), left) for _ in range(CLIENTS)))
            found.held.append(await _look(service, count * (look + 1) // looks))
    if await service.stop() != 0:
        raise RuntimeError("the service did not end in order")
    return found


async def _hang_up(port: int, rng: random.Random) -> None:
    """Sends a request, waits for up to a tenth of a second, and closes the connection."""
    body = {"prompt": "Where is my order?", "max_tokens": rng.choice((1, 8, 64))} | rng.choice(BODIES)
    sent = request("/v1/completions", body)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent if rng.random() < 0.95 else sent[: rng.randrange(len(sent))])
    await asyncio.sleep(rng.random() * 0.1)
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def _look(service: ForkedService, disconnects: int) -> Held:
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        left = {"not asked yet": 1.0}
        for _ in range(200):
            families = text_string_to_metric_families((await client.get("/metrics")).text)
            samples = {sample.name: sample.value for family in families for sample in family.samples}
            left = {name: samples[name] for name in GAUGES if samples[name]}
            if not left:
                break
            await asyncio.sleep(0.05)
        asked = {"model": "bonbon", "prompt": "Where is my order?", "max_tokens": 8}
        status = (await client.post("/v1/completions", json=asked)).status_code
    process = psutil.Process(service.pid)
    return Held(disconnects, left, process.num_fds(), process.memory_info().rss / 2**20, status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disconnects", type=int, default=50_000)
    arguments = parser.parse_args()
    start = perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(disconnects(Path(directory), arguments.disconnects, looks=20, progress=True))
    first, last = found.held[0], found.held[-1]
    print(f"{last.disconnects} disconnects in {perf_counter() - start:.0f} s")
    print(f"descriptors {first.descriptors} before and {last.descriptors} after, ", end="")
    print(f"memory {first.memory:.0f} MiB before and {last.memory:.0f} MiB after")
    print(told("memory at the end over memory when warm,", found.growth, 1.1))
    if found.problems:
        print(*found.problems, sep="\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
