"""Loads the service at its capacity, then at ten times that, and compares the latency of accepted requests.

python -m tests.long.overload --seconds 30
"""

import argparse
import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import httpx2
import numpy as np
import psutil

from tests.support.service.forked_service import ForkedService
from tests.support.targets import told

INSIDE = 8
"""Requests that are processed concurrently; as many may wait."""
TOKENS = 4 * 12
BODY = {"model": "bonbon", "messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 12}


@dataclass(frozen=True)
class Measured:
    """Requests by status, the 50th and 99th percentile of accepted requests' seconds, and the service's memory in
    MiB."""

    statuses: dict[int, int]
    p50: float
    p99: float
    memory: float


async def measure(service: ForkedService, clients: int, seconds: float) -> Measured:
    """Runs `clients` that send requests without pause and wait after a refusal for as long as an answer takes."""
    statuses: Counter[int] = Counter()
    taken: list[float] = []
    end = perf_counter() + seconds
    limits = httpx2.Limits(max_connections=clients)

    async def ask(client: httpx2.AsyncClient) -> None:
        while (begin := perf_counter()) < end:
            response = await client.post("/v1/chat/completions", json=BODY)
            statuses[response.status_code] += 1
            if response.status_code == 200:
                taken.append(perf_counter() - begin)
            else:
                await asyncio.sleep(1.0)

    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0, limits=limits) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    memory = psutil.Process(service.pid).memory_info().rss / 2**20
    p50, p99 = np.quantile(taken, (0.5, 0.99)).tolist()
    return Measured(dict(statuses), p50, p99, memory)


async def overload(directory: Path, seconds: float) -> tuple[Measured, Measured]:
    """Measures at capacity (as many clients as can be processed or wait) and at ten times that."""
    limits = {"max_tokens_in_flight": INSIDE * TOKENS, "max_waiting": INSIDE}
    service = ForkedService(directory, engine_options={"delay": 0.05}, service=limits)
    await service.start()
    await measure(service, 2 * INSIDE, min(seconds, 3.0))  # warm
    at_capacity = await measure(service, 2 * INSIDE, seconds)
    above = await measure(service, 20 * INSIDE, seconds)
    assert await service.stop() == 0
    return at_capacity, above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    with tempfile.TemporaryDirectory() as directory:
        results = asyncio.run(overload(Path(directory), parser.parse_args().seconds))
    for name, found in zip(("at capacity", "at ten times"), results, strict=True):
        print(f"{name}: {found.statuses}, p50 {found.p50:.2f} s, p99 {found.p99:.2f} s, {found.memory:.0f} MiB")
    capacity, above = results
    print(told("p99 of the accepted over p99 at capacity,", above.p99 / capacity.p99, 2.0))
    print(told("memory over memory at capacity,", above.memory / capacity.memory, 1.2))


if __name__ == "__main__":
    main()
