"""`bonbon keys`: make, list, revoke and rotate API keys."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

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
from bonbon.cli.durations import age
from bonbon.ids import ID_LENGTH
from bonbon.keys.key_records import Key, Scope
from bonbon.keys.key_store import all_keys, create_key, revoke_key, rotate_key
from bonbon.settings import Settings
from bonbon.store.database import Database, open_database

app = typer.Typer(help="API keys: create, list, revoke, rotate.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(help="A key's name, its id, or the beginning of its id.")]
T = TypeVar("T")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for; shown in the list.")],
    tenant: Annotated[str, typer.Option(help="Whose requests it makes; their groups are kept apart.")] = "",
    scope: Annotated[list[Scope] | None, typer.Option(help="May be given several times (default: both).")] = None,
    expires_in: Annotated[str | None, typer.Option(help="A time: 90d, 12h, 2w.")] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once; scopes complete and feedback unless named."""
    settings = store_settings(data_dir, database)
    expires = None if expires_in is None else datetime.now(UTC) + age(expires_in, "--expires-in")
    scopes = scope or [Scope.COMPLETE, Scope.FEEDBACK]

    async def make() -> tuple[Key, str]:
        # The first key is made before a service has made the database.
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        async with open_database(settings.database, timeouts=settings.database_timeouts) as store:
            return await create_key(store, name, tenant=tenant, scopes=scopes, expires=expires)

    _print_new(*asyncio.run(make()), as_json)


@app.command("list")
def list_keys(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Every key with its tenant, scopes and state; never the keys themselves."""
    found = _with_store(store_settings(data_dir, database), all_keys)
    if as_json:
        print_json({"keys": [_described(key) for key in found]})
        return
    out = console()
    is_wide = out.width >= WIDE
    titles = ("id", "name", "tenant", "scopes", "state", *(("created (UTC)",) if is_wide else ()))
    table = table_of(out, *titles, longest=ID_LENGTH)
    for key in found:
        scopes = (", " if is_wide else "\n").join(sorted(key.scopes))
        created = (f"{key.created:%Y-%m-%d %H:%M}",) if is_wide else ()
        table.add_row(key.id, key.name, key.tenant, scopes, _state(key), *created)
    out.print(table)


@app.command("revoke")
def revoke(key: Named, data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Revoke a key, which then opens nothing; running services know within service.keys_poll seconds."""
    settings = store_settings(data_dir, database)
    revoked = _with_store(settings, lambda store: revoke_key(store, key))
    if as_json:
        print_json(_described(revoked))
        return
    console().print(
        f"{revoked.id} ({revoked.name}) is revoked; services know within {settings.service.keys_poll:g} s",
        soft_wrap=True,
    )


@app.command("rotate")
def rotate(
    key: Named,
    overlap: Annotated[str, typer.Option(help="How long the old key still opens: 24h, 0s.")] = "24h",
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a new key in an old one's place; the old one goes on for a while, so that clients can change over."""
    left = age(overlap, "--overlap")
    new = _with_store(store_settings(data_dir, database), lambda store: rotate_key(store, key, overlap=left))
    _print_new(*new, as_json)


def _with_store(settings: Settings, act: Callable[[Database], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_store(settings) as store:
            return await act(store)

    return asyncio.run(run())


def _print_new(record: Key, key: str, as_json: bool) -> None:
    if as_json:
        print_json(_described(record) | {"key": key})
        return
    # The key alone on standard output, so that a script can take it.
    owner = f" of tenant {record.tenant}" if record.tenant else ""
    Console(stderr=True, highlight=False, markup=False).print(
        f"{record.id}{owner} may {', '.join(sorted(record.scopes))}; the key is shown this once:", soft_wrap=True
    )
    typer.echo(key)


def _described(key: Key) -> dict[str, Any]:
    described = asdict(key) | {"scopes": sorted(key.scopes), "state": _state(key)}
    del described["digest"]
    return described


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    if not key.valid(datetime.now(UTC)):
        return "expired"
    return "valid" if key.expires is None else f"until {key.expires:%Y-%m-%d %H:%M}"
