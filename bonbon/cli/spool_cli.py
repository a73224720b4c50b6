"""`bonbon pairs spool`: shows, replays and deletes groups that are not in the database."""

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
    """The result of a replay.

    Attributes:
        stored: Groups that are now in the log.
        left: Groups that the database refused again or that cannot be read.
    """

    stored: int
    left: int


def show_spool(settings: Settings, *, as_json: bool) -> None:
    """Prints which groups wait for the database and which have been set aside."""
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
        out.print("`bonbon pairs spool --replay` tries again to store them, and --delete deletes them", soft_wrap=True)


def replay_set_aside(settings: Settings, bar: Bar, *, as_json: bool) -> None:
    """Tries again to store the groups that have been set aside, and prints the result."""
    set_aside = set_aside_in(settings.spool_dir)
    done = asyncio.run(_replay(settings, set_aside, bar))
    reasons = set_aside.reasons()
    if as_json:
        print_json({"stored": done.stored, "left": done.left, "set_aside": dict(reasons)})
        return
    out = console()
    out.print(f"{done.stored} groups are now in the log; {done.left} are still set aside" + (":" if reasons else ""))
    _print_reasons(out, reasons)


def delete_set_aside(settings: Settings, *, ask: bool, as_json: bool) -> None:
    """Deletes the groups that have been set aside."""
    set_aside = set_aside_in(settings.spool_dir)
    count = set_aside.recount()
    if count and ask:
        typer.confirm(f"Permanently delete {count} groups that are set aside?", abort=True, err=True)
    set_aside.clear()
    if as_json:
        print_json({"deleted": count})
    else:
        console().print(f"{count} groups that had been set aside were deleted")


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
    """Returns None if the group is now in the database; otherwise the entry to keep, with the current reason."""
    assert entry.line is not None, "every entry to replay has a line"
    if entry.line.group is None:
        return entry
    try:
        await store_late(database, [entry.line.group])
    except StoreUnavailable as error:
        raise UserError(f"{error}; the groups stay set aside: try again when the database is available") from error
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
