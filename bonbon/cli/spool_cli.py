"""`bonbon pairs spool`: what waits for the database, and what was set aside."""

import asyncio
from collections import Counter
from dataclasses import dataclass, replace

import typer
from rich.console import Console
from rich.table import Table

from bonbon.cli.database_options import console, open_store, print_json
from bonbon.errors import StoreError, StoreUnavailable, UserError
from bonbon.pairs.spool.replay import store_late
from bonbon.pairs.spool.segment import read_segment
from bonbon.pairs.spool.set_aside import Entry, SetAside, set_aside_in
from bonbon.pairs.spool.spool import Spool
from bonbon.progress import Bar
from bonbon.settings import Settings
from bonbon.store.database import Database


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many groups are in the log now, and how many the database has refused again or nobody can read."""

    stored: int
    left: int


def show_spool(settings: Settings, *, as_json: bool) -> None:
    """Print what waits and what is set aside."""
    spool = Spool(settings.spool_dir, settings.service.spool_bytes)
    waiting = [line for path in spool.paths() for line in read_segment(path)]
    times = [line.group.time for line in waiting if line.group is not None]
    reasons = spool.set_aside.reasons()
    if as_json:
        print_json(
            {
                "directory": settings.spool_dir,
                "waiting": len(waiting),
                "bytes": spool.size,
                "oldest": min(times, default=None),
                "set_aside": dict(reasons),
            }
        )
        return
    out = console()
    since = f", the oldest since {min(times):%Y-%m-%d %H:%M} UTC" if times else ""
    out.print(f"{len(waiting)} groups wait in {settings.spool_dir} ({spool.size} bytes){since}", soft_wrap=True)
    out.print(f"{reasons.total()} are set aside" + (":" if reasons else ""))
    _print_reasons(out, reasons)
    if reasons:
        out.print(
            "`bonbon pairs spool --replay` offers them to the database once more, --delete deletes them", soft_wrap=True
        )


def replay_set_aside(settings: Settings, bar: Bar, *, as_json: bool) -> None:
    """Offer what is set aside to the database once more, and print what became of it."""
    set_aside = set_aside_in(settings.spool_dir)
    done = asyncio.run(_replay(settings, set_aside, bar))
    reasons = set_aside.reasons()
    if as_json:
        print_json({"stored": done.stored, "left": done.left, "set_aside": dict(reasons)})
        return
    out = console()
    out.print(f"{done.stored} groups are in the log now; {done.left} are still set aside" + (":" if reasons else ""))
    _print_reasons(out, reasons)


def delete_set_aside(settings: Settings, *, ask: bool, as_json: bool) -> None:
    """Delete what is set aside."""
    set_aside = set_aside_in(settings.spool_dir)
    count = set_aside.recount()
    if count and ask:
        typer.confirm(f"Delete {count} groups that are set aside for good?", abort=True, err=True)
    set_aside.clear()
    if as_json:
        print_json({"deleted": count})
    else:
        console().print(f"{count} groups that were set aside are deleted")


async def _replay(settings: Settings, set_aside: SetAside, bar: Bar) -> Replayed:
    files = set_aside.files()
    entries = {file: set_aside.read(file) for file in files}
    total, done, stored = sum(map(len, entries.values())), 0, 0
    async with open_store(settings) as database:
        with bar("replaying", total) as progress:
            for file, found in entries.items():
                left = []
                for entry in found:
                    refused = await _offer(database, entry)
                    left += [] if refused is None else [refused]
                    done += 1
                    progress(done)
                stored += len(found) - len(left)
                set_aside.replace(file, left)
    return Replayed(stored, set_aside.recount())


async def _offer(database: Database, entry: Entry) -> Entry | None:
    """None when its group is in the database now; otherwise what stays, with the reason of today."""
    assert entry.line is not None, "only files of lines are replayed"
    if entry.line.group is None:
        return entry
    try:
        await store_late(database, [entry.line.group])
    except StoreUnavailable as error:
        raise UserError(f"{error}; what is set aside stays as it is: try again when the database answers") from error
    except StoreError as error:
        return replace(entry, reason=f"the database refused it: {error.why}")
    return None


def _print_reasons(out: Console, reasons: Counter[str]) -> None:
    if not reasons:
        return
    table = Table("reason", "groups", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for reason, count in reasons.most_common():
        table.add_row(reason, str(count))
    out.print(table)
