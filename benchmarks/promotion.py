"""Measures the time from a promotion until every gateway on one database answers with the new version.

python benchmarks/promotion.py [--database URL] [--gateways 3] [--promotions 30]

The gateways are real services with fake engines in one process, which poll the registry every `service.registry_poll`
seconds (its default). The measured time runs from the promotion's commit to the last gateway's switch.
"""

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

from bonbon.settings import ServiceSettings
from tests.support.service.running_service import WatchedEngine, new_version, running, settings_in


async def measure(database: str, gateways: int, promotions: int, directory: Path) -> list[float]:
    poll = ServiceSettings().registry_poll
    settings = settings_in(directory, registry_poll=poll).model_copy(update={"database_url": database})
    seconds = []
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(running(settings, engine=WatchedEngine())) for _ in range(gateways)]
        registry = services[0].state.registry
        for weights in range(promotions):
            version = await new_version(registry, weights)
            await registry.promote(version.name, actor="benchmark", force=True)
            start = perf_counter()
            while any(  # noqa: ASYNC110
                service.state.router.champion != version.name for service in services
            ):
                await asyncio.sleep(0.002)
            seconds.append(perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="", help="SQLAlchemy URL; SQLite in a new directory by default")
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--promotions", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        taken = measure(arguments.database, arguments.gateways, arguments.promotions, Path(directory))
        seconds = sorted(asyncio.run(taken))
    print(f"{len(seconds)} promotions, {arguments.gateways} gateways, seconds until all answer with the version:")
    print(f"median {median(seconds):.2f}, highest {seconds[-1]:.2f}")


if __name__ == "__main__":
    main()
