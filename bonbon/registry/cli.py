"""`bonbon models`: versions and aliases, promote and rollback."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from bonbon.engines.base import VersionKind
from bonbon.options import AsJson, DatabaseUrl, DataDir, console, open_store, print_json, store_settings
from bonbon.pairs.savings import Savings, read_savings
from bonbon.registry.due import NextRound, next_round
from bonbon.registry.records import BEST_OF_N, CHAMPION, Event, Version
from bonbon.registry.registry import PROMOTABLE, Registry
from bonbon.settings import Settings

app = typer.Typer(help="The model registry: versions, promote, rollback.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A version's name, as `bonbon models list` shows it.")]
T = TypeVar("T")


@app.command("list")
def list_versions(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Every version with its state and k, what it has saved, what the aliases name, and what the next round waits for.

    k is the number of draws from which the version answers with the best. It is n for a champion that answers with
    best-of-n again.
    """
    settings = store_settings(data_dir, database)

    async def read(
        registry: Registry,
    ) -> tuple[list[Version], dict[str, str], dict[str, Savings], NextRound | None]:
        versions, aliases = await registry.list(), await registry.aliases()
        savings = {saved.version: saved for saved in reversed(await read_savings(registry.database))}
        champion = next((version for version in versions if version.name == aliases.get(CHAMPION)), None)
        due = None if champion is None else await next_round(registry, champion, settings)
        return versions, aliases, savings, due

    versions, aliases, savings, due = _with_registry(settings, read)
    if as_json:
        listed = [
            asdict(version) | {"k": version.k, "saved_share": _saved(savings, version.name)} for version in versions
        ]
        print_json({"aliases": aliases, "versions": listed, "next_round": due and due.waits_for})
        return
    table = Table("version", "state", "alias", "k", "saved", "parent", "created (UTC)", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for version in versions:
        names = ", ".join(alias for alias, name in sorted(aliases.items()) if name == version.name)
        created = f"{version.created:%Y-%m-%d %H:%M:%S}"
        share = _saved(savings, version.name)
        saved = "" if share is None else f"{share:.0%}"
        answers = version.kind is not VersionKind.BASE and version.state in PROMOTABLE
        k = "n" if aliases.get(BEST_OF_N) == version.name else str(version.k) if answers else ""
        table.add_row(version.name, version.state, names, k, saved, version.parent or "", created)
    console().print(table)
    if due is not None:
        console().print(due.waits_for)


def _saved(savings: dict[str, Savings], name: str) -> float | None:
    return savings[name].saved_share if name in savings else None


@app.command("show")
def show_version(name: Name, data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """One version: its files, training, evaluation, verdict and history."""

    async def read(registry: Registry) -> tuple[Version, dict[str, str], tuple[Event, ...]]:
        return await registry.get(name), await registry.aliases(), await registry.history(version=name)

    version, aliases, history = _with_registry(store_settings(data_dir, database), read)
    names = sorted(alias for alias, target in aliases.items() if target == name)
    if as_json:
        print_json(asdict(version) | {"aliases": names, "history": [asdict(event) for event in history]})
        return
    out = console()
    plain = Table.grid(padding=(0, 2))
    for key, value in asdict(version).items():
        if not isinstance(value, dict):
            plain.add_row(key, str(value or ""))
    plain.add_row("aliases", ", ".join(names))
    out.print(plain)
    for title in ("training", "evaluation", "verdict"):
        if getattr(version, title):
            out.print(Text(title, "bold"), JSON.from_data(getattr(version, title)))
    out.print(Text.assemble(("history", "bold"), ", newest first"))
    for event in history:
        out.print(f"{event.time:%Y-%m-%d %H:%M:%S} {event.kind} by {event.actor} {event.detail or ''}", soft_wrap=True)


@app.command()
def promote(
    name: Name,
    expected: Annotated[str | None, typer.Option(help="Only if this version is the champion now.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if the gate has not approved it.")] = False,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion; the champion before it becomes `previous`."""

    async def move(registry: Registry) -> tuple[Version, str | None]:
        before = await registry.champion()
        return await registry.promote(name, expected=expected, force=force), before

    settings = store_settings(data_dir, database)
    version, before = _with_registry(settings, move)
    _report(settings, version, before, as_json)


@app.command()
def rollback(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Make the previous champion the champion again; a second rollback takes the first one back."""

    async def move(registry: Registry) -> tuple[Version, str | None]:
        before = await registry.champion()
        return await registry.rollback(), before

    settings = store_settings(data_dir, database)
    version, before = _with_registry(settings, move)
    _report(settings, version, before, as_json)


def _report(settings: Settings, version: Version, before: str | None, as_json: bool) -> None:
    if as_json:
        print_json({CHAMPION: version.name, "before": before})
        return
    out = console()
    if before == version.name:
        out.print(f"{version.name} is the champion already; nothing changed", soft_wrap=True)
        return
    out.print(Text.assemble((version.name, "bold"), f" is the champion (before: {before or 'none'})"), soft_wrap=True)
    out.print(
        f"A running service sees it within {settings.service.registry_poll:g} s, checks its files and its answers, and "
        f"then answers new requests with it; if a check fails, {before or 'the base'} keeps answering and "
        "/health/ready says why.",
        soft_wrap=True,
    )


def _with_registry(settings: Settings, act: Callable[[Registry], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_store(settings) as database:
            return await act(Registry(database, settings.versions_dir))

    return asyncio.run(run())
