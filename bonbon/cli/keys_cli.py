"""`bonbon keys`: creates, lists, revokes and rotates API keys."""

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

app = typer.Typer(help="Create, list, revoke and rotate API keys.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(help="The name of the key, its id, or the beginning of its id.")]
T = TypeVar("T")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, as shown by `bonbon keys list`.")],
    tenant: Annotated[
        str, typer.Option(help="The tenant whose requests use the key. Each tenant's groups are kept apart.")
    ] = "",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What the key allows; may be repeated (default: complete and feedback).")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="Lifetime of the key, such as 90d, 12h or 2w (default: unlimited).")
    ] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It cannot be displayed again."""
    settings = store_settings(data_dir, database)
    expires = None if expires_in is None else datetime.now(UTC) + age(expires_in, "--expires-in")
    scopes = scope or [Scope.COMPLETE, Scope.FEEDBACK]

    async def make() -> tuple[Key, str]:
        # The first key is usually created before a service has created the database.
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        async with open_database(settings.database, timeouts=settings.database_timeouts) as store:
            return await create_key(store, name, tenant=tenant, scopes=scopes, expires=expires)

    _print_new(*asyncio.run(make()), as_json)


@app.command("list")
def list_keys(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List every key's name, tenant, scopes and state, but not the keys themselves."""
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
    """Revoke a key. Running services reject it within service.keys_poll seconds."""
    settings = store_settings(data_dir, database)
    revoked = _with_store(settings, lambda store: revoke_key(store, key))
    if as_json:
        print_json(_described(revoked))
        return
    console().print(
        f"{revoked.id} ({revoked.name}) is revoked; running services reject it within {settings.service.keys_poll:g} s",
        soft_wrap=True,
    )


@app.command("rotate")
def rotate(
    key: Named,
    overlap: Annotated[str, typer.Option(help="How long the old key stays valid, such as 24h or 0s.")] = "24h",
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one. The old key stays valid for a while, so that clients can switch to the new one."""
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
    # Only the key goes to standard output, so that a script can capture it.
    owner = f" of tenant {record.tenant}" if record.tenant else ""
    Console(stderr=True, highlight=False, markup=False).print(
        f"{record.id}{owner} may {', '.join(sorted(record.scopes))}; the key is displayed only once:", soft_wrap=True
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
