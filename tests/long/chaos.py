"""Kills the service at random moments under load, and then looks for its answers in the log.

python -m tests.long.chaos --kills 1000
"""

import argparse
import asyncio
import random
import sqlite3
import tempfile
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import track

from tests.support.service.forked_service import ForkedService
from tests.support.service.load import SERVED, Compared, Load

LONGEST_LIFE = 0.15
"""Most seconds between a start and its kill."""


async def chaos(directory: Path, kills: int, *, seed: int = 0, progress: bool = False) -> tuple[Load, Compared]:
    """Kills the service `kills` times under load; returns the load and its comparison with the log."""
    rng = random.Random(seed)
    service = ForkedService(directory, engine_options={"delay": 0.002})
    await service.start()
    load = Load(service.url, seed=seed)
    async with load.running():
        for _ in track(range(kills), "killing", console=Console(stderr=True), disable=not progress):
            await asyncio.sleep(rng.random() * LONGEST_LIFE)
            await asyncio.to_thread(service.kill)
            await service.start()
    assert await service.stop() == 0
    with sqlite3.connect(directory / "data" / "bonbon.db") as connection:
        return load, load.compare(connection.execute(SERVED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        load, compared = asyncio.run(chaos(Path(directory), arguments.kills, seed=arguments.seed, progress=True))
    print(f"{arguments.kills} kills in {perf_counter() - start:.0f} s")
    print(f"{len(load.answered)} requests answered, {load.retried} of them after a retry")
    print(f"not in the log: {len(compared.missing)}, there more than once: {len(compared.doubled)}, ", end="")
    print(f"not as answered: {len(compared.changed)}")
    if not compared.good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
