"""Promotes and rolls back under load: no request may fail, and each must name the version that was served.

python -m tests.long.soak --requests 30000 --swaps 20
"""

import argparse
import asyncio
import json
import random
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from bonbon.registry.registry import Registry
from bonbon.store.database import open_database
from tests.support.service.forked_service import ForkedService
from tests.support.service.running_service import new_version
from tests.support.targets import told

CLIENTS = 8
SWAP_WINDOW = 0.5
"""Seconds around a swap in which requests are compared with the others."""


@dataclass(frozen=True)
class Request:
    """An answered request: its start and end, the version that it named, and its group."""

    begin: float
    end: float
    version: str
    group_id: str


@dataclass
class Soak:
    """The results. `champions` holds versions with the times from which the service may have answered with them."""

    requests: list[Request] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    champions: list[tuple[float, float, str]] = field(default_factory=list)
    misnamed: list[Request] = field(default_factory=list)

    @property
    def swaps(self) -> int:
        return len(self.champions) - 1

    def p99(self) -> tuple[float, float]:
        """Seconds at the 99th percentile inside the swaps' windows, and outside."""
        taken = np.array([request.end - request.begin for request in self.requests])
        times = np.array([begin for begin, _, _ in self.champions[1:]])
        begins = np.array([request.begin for request in self.requests])
        near = (np.abs(begins[:, None] - times[None, :]) < SWAP_WINDOW).any(axis=1)
        return float(np.quantile(taken[near], 0.99)), float(np.quantile(taken[~near], 0.99))

    def right(self, request: Request) -> bool:
        """Returns whether the request's version was served at some time during the request."""
        ends = [end for _, end, _ in self.champions[1:]] + [float("inf")]
        return any(
            version == request.version and begin <= request.end and request.begin <= until
            for (begin, _, version), until in zip(self.champions, ends, strict=True)
        )


async def soak(directory: Path, requests: int, swaps: int, *, seed: int = 0, progress: bool = False) -> Soak:
    """Sends at least `requests` requests over at least `swaps` promotions and rollbacks."""
    service = ForkedService(directory, engine_options={"delay": 0.001}, service={"registry_poll": 0.1})
    await service.start()
    found, rng, stop = Soak(), random.Random(seed), asyncio.Event()
    database_url = f"sqlite+aiosqlite:///{directory / 'data' / 'bonbon.db'}"
    async with (
        open_database(database_url) as database,
        httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client,
    ):
        registry = Registry(database, directory / "data" / "versions")
        found.champions.append((0.0, 0.0, "fake"))
        asking = [asyncio.create_task(_ask(client, random.Random(rng.random()), found, stop)) for _ in range(CLIENTS)]
        with Progress(console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task("requests", total=requests)
            for number in range(swaps):
                await _answered(found, requests * (number + 1) // (swaps + 1))
                await _swap(client, registry, found, number)
                bar.update(task, completed=len(found.requests))
            await _answered(found, requests)
        stop.set()
        await asyncio.gather(*asking)
    if await service.stop() != 0:
        found.failures.append("the service did not end in order")
    _compare(directory, found)
    return found


async def _answered(found: Soak, count: int) -> None:
    while len(found.requests) + len(found.failures) < count:
        await asyncio.sleep(0.02)


async def _swap(client: httpx2.AsyncClient, registry: Registry, found: Soak, number: int) -> None:
    """Promotes or, every third time, rolls back."""
    if number % 3 == 2:
        path, body = "/admin/rollback", None
    else:
        version = await new_version(registry, number)
        await registry.approve(version.name, {"passed": True, "reasons": []})
        path, body = "/admin/promote", {"version": version.name}
    begin = perf_counter()
    response = await client.post(path, json=body)
    answer = response.json()
    if response.status_code != 200 or not answer["served"]:
        found.failures.append(f"{path}: {response.status_code} {response.text[:200]}")
        return
    found.champions.append((begin, perf_counter(), answer["champion"]))


async def _ask(client: httpx2.AsyncClient, rng: random.Random, found: Soak, stop: asyncio.Event) -> None:
    while not stop.is_set():
        stream = rng.random() < 0.5
        body: dict[str, Any] = {"model": "bonbon", "stream": stream, "max_tokens": 6, "prompt": "Where is my order?"}
        begin = perf_counter()
        try:
            response = await client.post("/v1/completions", json=body)
            text = response.text
            if stream:
                if not text.endswith("data: [DONE]\n\n"):
                    raise ValueError(text[-200:])
                text = text.split("\n\n")[-3].removeprefix("data: ")
            extension = json.loads(text)["bonbon"]
        except (httpx2.TransportError, ValueError, KeyError) as error:
            found.failures.append(repr(error)[:300])
            continue
        found.requests.append(Request(begin, perf_counter(), extension["version"], extension["group_id"]))


def _compare(directory: Path, found: Soak) -> None:
    with sqlite3.connect(directory / "data" / "bonbon.db") as connection:
        logged = dict(connection.execute("SELECT id, version FROM groups"))
    found.misnamed = [r for r in found.requests if logged.get(r.group_id) != r.version or not found.right(r)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--swaps", type=int, default=24)
    arguments = parser.parse_args()
    start = perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(soak(Path(directory), arguments.requests, arguments.swaps, progress=True))
    inside, outside = found.p99()
    print(f"{len(found.requests)} requests over {found.swaps} swaps in {perf_counter() - start:.0f} s:")
    print(f"failures {len(found.failures)}, answers of another version than they name {len(found.misnamed)}")
    print(f"p99 within {SWAP_WINDOW:g} s of a swap {1000 * inside:.0f} ms, else {1000 * outside:.0f} ms")
    print(told("p99 around swaps over p99 elsewhere,", inside / outside, 1.5))
    if found.failures or found.misnamed:
        print(*found.failures[:5], sep="\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
