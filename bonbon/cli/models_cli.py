"""`bonbon models`: lists, promotes, exports and imports the versions in the registry."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from bonbon.cli.database_options import (
    WIDE,
    AsJson,
    DatabaseUrl,
    DataDir,
    console,
    open_store,
    print_json,
    store_settings,
    table_of,
)
from bonbon.engines.engine import VersionKind
from bonbon.files.model_files import resolve_model, served_name
from bonbon.pairs.live.savings import Savings, read_savings
from bonbon.progress import bar
from bonbon.registry.next_round import NextRound, next_round
from bonbon.registry.registry import PROMOTABLE, Registry
from bonbon.registry.transfer.version_export import export_version
from bonbon.registry.transfer.version_import import Source, base_of, import_version, read_source
from bonbon.registry.version_records import BEST_OF_N, CHAMPION, Event, Version
from bonbon.registry.version_summary import print_version
from bonbon.settings import Settings, load_settings
from bonbon.store.database import open_database

app = typer.Typer(help="Inspect, promote, export and import the versions in the model registry.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name of a version, as listed by `bonbon models list`.")]
T = TypeVar("T")


@app.command("list")
def list_versions(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List all versions with their aliases, k and savings, and show what the next training round waits for.

    k is the number of candidates that a version samples; the best of them is the answer. It is n for a champion that
    fell back to best-of-n.
    """
    settings = store_settings(data_dir, database)

    async def read(
        registry: Registry,
    ) -> tuple[list[Version], dict[str, str], dict[str, Savings], NextRound | None]:
        versions, aliases = await registry.list(), await registry.aliases()
        savings = {saved.version: saved for saved in reversed(await read_savings(registry.database))}
        champion = next((version for version in versions if version.name == aliases.get(CHAMPION)), None)
        upcoming = None if champion is None else await next_round(registry, champion, settings)
        return versions, aliases, savings, upcoming

    versions, aliases, savings, upcoming = _with_registry(settings, read)
    if as_json:
        listed = [
            asdict(version) | {"k": version.k, "saved_share": _saved(savings, version.name)} for version in versions
        ]
        print_json({"aliases": aliases, "versions": listed, "next_round": upcoming and upcoming.waits_for})
        return
    out = console()
    is_wide = out.width >= WIDE
    titles = ("version", "state", "alias", "k", "saved", *(("parent", "created (UTC)") if is_wide else ("created",)))
    table = table_of(out, *titles, longest=max((len(version.name) for version in versions), default=0))
    for version in versions:
        names = ", ".join(alias for alias, name in sorted(aliases.items()) if name == version.name)
        parent = (version.parent or "",) if is_wide else ()
        created = f"{version.created:%Y-%m-%d %H:%M:%S}" if is_wide else f"{version.created:%Y-%m-%d}"
        share = _saved(savings, version.name)
        saved = "" if share is None else f"{share:.0%}"
        answers = version.kind is not VersionKind.BASE and version.state in PROMOTABLE
        k = "n" if aliases.get(BEST_OF_N) == version.name else str(version.k) if answers else ""
        table.add_row(version.name, version.state, names, k, saved, *parent, created)
    out.print(table)
    if upcoming is not None:
        out.print(upcoming.waits_for)


def _saved(savings: dict[str, Savings], name: str) -> float | None:
    return savings[name].saved_share if name in savings else None


@app.command("show")
def show_version(
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Show all stored details.")] = False,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show how a version was trained, its evaluation, the gate's decision, and its history."""

    async def read(registry: Registry) -> tuple[Version, dict[str, str], tuple[Event, ...]]:
        return await registry.get(name), await registry.aliases(), await registry.history(version=name)

    version, aliases, history = _with_registry(store_settings(data_dir, database), read)
    names = sorted(alias for alias, target in aliases.items() if target == name)
    if as_json:
        print_json(asdict(version) | {"aliases": names, "history": [asdict(event) for event in history]})
        return
    print_version(console(), version, names, history, full=full)


@app.command("export")
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="The directory to create.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapter into the base model and write full weights.")
    ] = False,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a version's files, model card and evaluation to a directory, for other programs or another installation."""
    settings = store_settings(data_dir, database)
    done = _with_registry(
        settings, lambda registry: export_version(registry, name, out.expanduser(), merged=merged, bar=bar)
    )
    if as_json:
        print_json({"directory": done.directory, "files": done.files, "bytes": done.bytes} | asdict(done.record))
        return
    what = "an adapter" if done.record.kind is VersionKind.ADAPTER else "full weights"
    console().print(
        f"{name} was written to {done.directory} as {what}: {done.files} files of {done.bytes / 1e6:,.1f} MB, their "
        "manifest, a model card (README.md), evaluation.json and bonbon.json",
        soft_wrap=True,
    )


@app.command("import")
def import_(
    directory: Annotated[
        Path, typer.Argument(help="A directory written by `bonbon models export` or `bonbon distill --out`.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Prefix of the version's new name; part of its digest is appended.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The base model: a directory or hub name (default: the registered one)."),
    ] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Copy a version with the same base model from another installation into this one, without promoting it."""
    settings = load_settings(model=model, data_dir=data_dir, database_url=database)
    version, source = asyncio.run(_import(settings, directory.expanduser(), name))
    if as_json:
        print_json(asdict(version) | {"k": version.k})
        return
    out = console()
    out.print(Text.assemble((version.name, "bold"), f" is {source.version}, imported from {directory}"), soft_wrap=True)
    out.print(
        f"It was evaluated by another installation. `bonbon evaluate {version.name}` evaluates it here; `bonbon models "
        f"promote {version.name} --force` promotes it without that.",
        soft_wrap=True,
    )


async def _import(settings: Settings, directory: Path, name: str | None) -> tuple[Version, Source]:
    source = await read_source(directory)
    # A new installation has no database yet. It is created only if the base model is known.
    create = bool(settings.model)
    if create:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with open_database(settings.database, create=create, timeouts=settings.database_timeouts) as database:
        registry = Registry(database, settings.versions_dir)
        if settings.model:
            where = await asyncio.to_thread(resolve_model, settings.model, settings.revision)
            base = await registry.register_base(served_name(settings.model), where)
        else:
            base = await base_of(registry, source)
        with Console(stderr=True).status("copying files"):
            return await import_version(registry, source, base, name=name), source


@app.command()
def promote(
    name: Name,
    expected: Annotated[str | None, typer.Option(help="Promote only if this version is the current champion.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote even if the gate has not approved the version.")
    ] = False,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion. The former champion becomes `previous`."""

    async def move(registry: Registry) -> tuple[Version, str | None]:
        before = await registry.champion()
        return await registry.promote(name, expected=expected, force=force), before

    settings = store_settings(data_dir, database)
    version, before = _with_registry(settings, move)
    _report(settings, version, before, as_json)


@app.command()
def rollback(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Make the previous champion the champion again. A second rollback undoes the first."""

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
        out.print(f"{version.name} is already the champion; nothing changed", soft_wrap=True)
        return
    out.print(Text.assemble((version.name, "bold"), f" is the champion (before: {before or 'none'})"), soft_wrap=True)
    out.print(
        f"A running service notices this within {settings.service.registry_poll:g} s, checks the version's files and "
        f"its answers, and then uses it for new requests. If a check fails, {before or 'the base'} continues to answer "
        "and /health/ready gives the reason.",
        soft_wrap=True,
    )


def _with_registry(settings: Settings, act: Callable[[Registry], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_store(settings) as database:
            return await act(Registry(database, settings.versions_dir))

    return asyncio.run(run())
