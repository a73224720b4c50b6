"""Sends requests generated from the service's OpenAPI description, valid and invalid, to the running service.

python -m tests.long.fuzz --cases 10000
"""

import argparse
import asyncio
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from bonbon.keys.key_records import Scope
from bonbon.keys.key_store import create_key
from bonbon.store.database import open_database
from tests.support.service.forked_service import ForkedService

LONGEST_ANSWER = 30.0
"""In seconds; anything longer counts as a hang."""
LONGEST_ERROR = 4000
"""In bytes; an error never echoes long input."""


def fuzz(url: str, key: str, cases: int, *, first_seed: int = 0) -> Counter[int]:
    """Sends `cases` requests over all operations, half of them valid, and counts their statuses.

    Raises AssertionError, with the smallest request that causes it, for a 5xx or a long error.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    results = list(schema.get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(operations) == len(results), "the description has an operation that cannot be read"
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    statuses: Counter[int] = Counter()
    for operation in operations:
        for mode in modes:

            @seed(first_seed)
            @settings(
                max_examples=max(2, cases // (len(operations) * len(modes))),
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Case[Any]) -> None:
                response = case.call(headers={"authorization": f"Bearer {key}"}, timeout=LONGEST_ANSWER)
                statuses[response.status_code] += 1
                assert response.status_code < 500, (response.status_code, case.as_curl_command(), response.text[:500])
                assert response.status_code < 400 or len(response.content) <= LONGEST_ERROR, case.as_curl_command()

            with suppress(Unsatisfiable):  # an operation without parameters cannot be called wrongly
                send()
    return statuses


async def fuzz_service(directory: Path, cases: int, *, first_seed: int = 0) -> Counter[int]:
    """Fuzzes a new service, which must be ready afterwards and shut down cleanly."""
    (directory / "data").mkdir()
    async with open_database(f"sqlite+aiosqlite:///{directory / 'data' / 'bonbon.db'}") as database:
        _, key = await create_key(database, "fuzz", scopes=list(Scope))
    service = ForkedService(directory)
    await service.start()
    statuses = await asyncio.to_thread(fuzz, service.url, key, cases, first_seed=first_seed)
    assert await service.stop() == 0
    return statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        statuses = asyncio.run(fuzz_service(Path(directory), arguments.cases, first_seed=arguments.seed))
    print(f"{statuses.total()} requests, no 5xx, none above {LONGEST_ANSWER:g} s: {dict(sorted(statuses.items()))}")


if __name__ == "__main__":
    main()
