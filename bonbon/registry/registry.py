"""The model registry: versions in the database and their files beside it."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update

from bonbon.engines.engine import VersionKind
from bonbon.errors import Conflict, UnknownVersion, UserError
from bonbon.files.manifest import base_digest, base_digest_of_every_file, verify
from bonbon.ids import time_ordered_id
from bonbon.registry.version_files import store
from bonbon.registry.version_paths import files_directory, refuse_missing, stored_path
from bonbon.registry.version_records import (
    BEST_OF_N,
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Event,
    Target,
    Version,
    VersionState,
)
from bonbon.store.database import Database
from bonbon.store.tables import aliases, events, version_numbers, versions
from bonbon.store.transaction import Transaction

DIGEST_LENGTH = 8
"""Number of characters of its digest in a version's name."""
PROMOTABLE = (VersionState.APPROVED, VersionState.RETIRED, VersionState.PROMOTED)


class Registry:
    """Versions, aliases and their history. Every change is one transaction together with its entry in the audit trail.

    Args:
        database: A started database.
        root: The directory `versions` of the data directory, with one directory of files per content.
    """

    def __init__(self, database: Database, root: Path) -> None:
        self.database, self.root = database, root.absolute()

    @property
    def data_dir(self) -> Path:
        """The directory that paths in the database are relative to."""
        return self.root.parent

    async def register_base(self, name: str, directory: Path | None) -> Version:
        """Returns the base version `name`, and registers it if necessary; its files stay where they are.

        `directory` is None when the files are not on this machine. Raises UserError when `name` is registered with
        other files.
        """
        digest = ""
        if directory is not None:
            directory, digest = await asyncio.to_thread(_located, directory)
        async with self.database.read() as connection:
            known = await self._find(connection, name)
        if known is not None and known.kind is VersionKind.BASE and _is_where(known, directory, digest):
            return known  # no write is needed, so a read-only database suffices
        earlier = digest
        if known is not None and known.digest and directory is not None and known.digest != digest:
            earlier = await asyncio.to_thread(base_digest_of_every_file, directory)
        async with self._change() as connection:
            known = await self._find(connection, name)
            if known is None:
                version = _new(name, name, None, VersionKind.BASE, digest, directory or Path(), VersionState.APPROVED)
                await connection.execute(insert(versions).values(self._row(version)))
                await _record(connection, "registered", name, "service", digest=digest)
                return version
            if known.kind is not VersionKind.BASE or (
                known.digest and digest and known.digest not in (digest, earlier)
            ):
                raise UserError(
                    f"the registry knows {name!r} with other files (digest {known.digest[:12]}, now {digest[:12]}); "
                    "name another data_dir or database_url for another base model",
                    param="model",
                )
            if _is_where(known, directory, digest):
                return known
            assert directory is not None
            await _set(connection, name, directory=stored_path(directory, self.data_dir), digest=digest)
        return replace(known, directory=directory, digest=digest)

    async def register(
        self,
        *,
        base: str,
        parent: str,
        kind: VersionKind,
        directory: Path,
        training: dict[str, Any],
        evaluation: dict[str, Any] | None = None,
        verdict: dict[str, Any] | None = None,
        prefix: str | None = None,
        actor: str = "trainer",
        leaving_out: Collection[str] = (),
    ) -> Version:
        """Copies the files in and registers them as `<base>-bonbon-<number>-<start of the digest>`.

        Args:
            verdict: The verdict of another installation's gate, which does not approve the version here.
            prefix: Replaces `<base>-bonbon-<number>` in the name.
            leaving_out: Names of files directly in `directory` that do not belong to the version.

        A database never gives a number twice. If it was restored from a backup and lost some numbers, the digest keeps
        other files from getting a name that a service still has loaded.

        Raises:
            UserError: The files are refused (see `bonbon.files.manifest.make_manifest`), the parent has another base,
                or the name that begins with `prefix` is taken.
            UnknownVersion: Base or parent is not registered.
        """
        if (await self.get(base)).kind is not VersionKind.BASE:
            raise UserError(
                f"{base!r} is not a base model; a version's base is what its first ancestor was trained from"
            )
        if (await self.get(parent)).base != base:
            raise UserError(f"{parent!r} is not a version of {base!r}: a version and its parent have the same base")
        manifest, target = await asyncio.to_thread(store, directory, self.root, leaving_out)
        async with self._change() as connection:
            if prefix is None:
                name = await self._next_name(connection, base, manifest.digest)
            else:
                name = await self._free_name(connection, f"{prefix}-{manifest.digest[:DIGEST_LENGTH]}")
            version = _new(name, base, parent, kind, manifest.digest, target, VersionState.REGISTERED)
            version = replace(version, training=training, evaluation=evaluation or {}, verdict=verdict)
            await connection.execute(insert(versions).values(self._row(version)))
            await _record(connection, "registered", name, actor, digest=manifest.digest, parent=parent)
        return version

    async def record_evaluation(self, name: str, evaluation: dict[str, Any]) -> Version:
        """Stores the evaluation of a version."""
        async with self._change() as connection:
            version = await self._need(connection, name)
            await _set(connection, name, evaluation=evaluation)
            await _record(connection, "evaluated", name, "trainer")
        return replace(version, evaluation=evaluation)

    async def approve(self, name: str, verdict: dict[str, Any]) -> Version:
        """Marks a version as approved by the gate: it may be promoted and becomes the alias `challenger`."""
        async with self._change() as connection:
            version = await self._judge(connection, name, VersionState.APPROVED, verdict)
            await _point(connection, CHALLENGER, name)
        return version

    async def refuse(self, name: str, verdict: dict[str, Any]) -> Version:
        """Marks a version as refused by the gate and removes it from the alias `challenger`."""
        async with self._change() as connection:
            version = await self._judge(connection, name, VersionState.REFUSED, verdict)
            await _clear(connection, CHALLENGER, name)
        return version

    async def promote(
        self, name: str, *, expected: str | None = None, actor: str = "cli", force: bool = False
    ) -> Version:
        """Makes `name` the champion, and the champion before it `previous`.

        Promoting the champion does nothing, unless its live win rate has raised its number of draws: then the verdict's
        number applies again.

        Args:
            expected: The champion that the caller expects to replace.
            force: Promote a version that the gate has refused or not judged.

        Raises:
            UnknownVersion: The version does not exist.
            UserError: The gate has not approved the version.
            Conflict: The champion is not the expected one.
        """
        async with self._change() as connection:
            version = await self._need(connection, name)
            champion = await _target(connection, CHAMPION)
            if expected is not None and champion != expected:
                raise Conflict(f"the champion is {champion!r}, not {expected!r}: another promotion came first")
            fell = await _target(connection, BEST_OF_N) is not None
            if champion == name and not fell and version.raised_k is None:
                return version
            if version.state not in PROMOTABLE and not force:
                raise UserError(
                    f"{name} is {version.state}, not approved; `bonbon models show {name}` says why, --force overrides",
                    param="version",
                )
            await self._move(connection, champion, name)
            await _set(connection, name, raised_k=None)
            await _clear(connection, CHALLENGER, name)
            await _record(connection, "promoted", name, actor, replaced=champion, forced=force)
        return replace(version, state=VersionState.PROMOTED, raised_k=None)

    async def rollback(self, *, actor: str = "cli") -> Version:
        """Makes `previous` the champion again, and the champion `previous`. Raises UserError when there is no previous
        one.
        """
        async with self._change() as connection:
            champion, previous = await _target(connection, CHAMPION), await _target(connection, PREVIOUS)
            if previous is None:
                raise UserError(f"there is no previous version to roll back to; the champion is {champion!r}")
            version = await self._need(connection, previous)
            await self._move(connection, champion, previous)
            await _record(connection, "rolled_back", previous, actor, replaced=champion)
        return replace(version, state=VersionState.PROMOTED)

    async def raise_k(self, name: str, k: int, *, actor: str, reason: str) -> Version:
        """Raises the champion `name` to the best of `k` draws until it is promoted again.

        `reason` is recorded in the audit trail.

        Raises:
            UnknownVersion: The version does not exist.
            Conflict: The version is not the champion, or already draws as many.
        """
        async with self._change() as connection:
            version = await self._need(connection, name)
            champion = await _target(connection, CHAMPION)
            if champion != name or version.k >= k:
                raise Conflict(
                    f"the champion {champion!r} is not {name!r} with fewer than {k} draws: it has changed meanwhile"
                )
            await _set(connection, name, raised_k=k)
            await _record(connection, "raised_k", name, actor, k=k, before=version.k, reason=reason)
        return replace(version, raised_k=k)

    async def fall_back(self, version: str, to: str, *, actor: str, reason: str) -> Version:
        """Answers with best-of-n of `to` instead of the champion `version`, until the next promotion or rollback.

        `reason` is recorded in the audit trail.

        Raises:
            UnknownVersion: The version `to` does not exist.
            Conflict: The champion is not `version`.
        """
        async with self._change() as connection:
            good = await self._need(connection, to)
            champion = await _target(connection, CHAMPION)
            if champion != version:
                raise Conflict(f"the champion is {champion!r}, not {version!r}: it has changed meanwhile")
            await self._move(connection, champion, to)
            await _point(connection, BEST_OF_N, to)
            await _record(connection, "fell_back", to, actor, replaced=version, reason=reason)
        return replace(good, state=VersionState.PROMOTED)

    async def champion(self) -> str | None:
        """Returns the name of the champion; None before the first promotion."""
        return (await self.aliases()).get(CHAMPION)

    async def fell_back(self, name: str) -> bool:
        """Returns whether `name` is the champion and answers with best-of-n; see `fall_back`."""
        return (await self.aliases()).get(BEST_OF_N) == name

    async def aliases(self) -> dict[str, str]:
        """Returns the version of each alias."""
        async with self.database.read() as connection:
            rows = await connection.execute(select(aliases.c.alias, aliases.c.version))
            return {row.alias: row.version for row in rows}

    async def targets(self) -> dict[str, Target]:
        """Returns the version of each alias with the digest of its files."""
        query = select(aliases.c.alias, aliases.c.version.label("target"), versions).join(
            versions, versions.c.name == aliases.c.version, isouter=True
        )
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).mappings()
            return {row["alias"]: self._alias_target(row) for row in rows}

    async def get(self, name: str) -> Version:
        """Returns the version `name`. Raises UnknownVersion."""
        async with self.database.read() as connection:
            return await self._need(connection, name)

    async def list(self) -> list[Version]:
        """Returns every version, oldest first."""
        async with self.database.read() as connection:
            rows = await connection.execute(select(versions).order_by(versions.c.created, versions.c.name))
            return [self._version(row) for row in rows.mappings()]

    async def newest(self, limit: int) -> tuple[Version, ...]:
        """Returns the newest versions, newest first, without bases."""
        query = select(versions).where(versions.c.kind != VersionKind.BASE).order_by(versions.c.created.desc())
        async with self.database.read() as connection:
            rows = await connection.execute(query.limit(limit))
            return tuple(self._version(row) for row in rows.mappings())

    async def history(
        self, limit: int = 100, *, version: str | None = None, kind: str | None = None
    ) -> tuple[Event, ...]:
        """Returns the newest entries of the audit trail (of one version or kind, if given), newest first."""
        query = select(events).order_by(events.c.time.desc(), events.c.id.desc()).limit(limit)
        if version is not None:
            query = query.where(events.c.version == version)
        if kind is not None:
            query = query.where(events.c.kind == kind)
        async with self.database.read() as connection:
            rows = await connection.execute(query)
            return tuple(Event(row.time, row.kind, row.version, row.actor, row.detail) for row in rows)

    async def record(self, kind: str, version: str, actor: str, **detail: Any) -> None:
        """Adds an entry to the audit trail."""
        async with self._change() as connection:
            await _record(connection, kind, version, actor, **detail)

    async def verify(self, name: str) -> Version:
        """Returns the version after reading its files again. Raises UserError when they differ from the registered
        ones.
        """
        version = await self.get(name)
        if version.kind is VersionKind.BASE and not version.digest:
            return version
        await asyncio.to_thread(refuse_missing, version)
        if version.kind is not VersionKind.BASE:
            await asyncio.to_thread(verify, version.directory, version.digest)
        elif await asyncio.to_thread(base_digest, version.directory) != version.digest:
            raise UserError(f"the base model in {version.directory} was changed since it was registered")
        return version

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[Transaction]:
        """Opens a transaction. Changes of all processes are serialised, so that each decides on current data."""
        async with self.database.write() as connection:
            await self.database.lock(connection, versions)
            yield connection

    async def _judge(self, connection: Transaction, name: str, state: VersionState, verdict: dict[str, Any]) -> Version:
        version = await self._need(connection, name)
        if version.state not in (VersionState.REGISTERED, VersionState.APPROVED, VersionState.REFUSED):
            raise UserError(f"{name} is {version.state}; only a version that was never promoted can be judged")
        await _set(connection, name, state=state, verdict=verdict)
        await _record(connection, state, name, "gate")
        return replace(version, state=state, verdict=verdict)

    async def _move(self, connection: Transaction, champion: str | None, name: str) -> None:
        await _point(connection, CHAMPION, name)
        await _clear(connection, BEST_OF_N)
        await _set(connection, name, state=VersionState.PROMOTED)
        if champion is not None and champion != name:
            await _point(connection, PREVIOUS, champion)
            await _set(connection, champion, state=VersionState.RETIRED)

    async def _next_name(self, connection: Transaction, base: str, digest: str) -> str:
        await connection.execute(self.database.insert_new(version_numbers).values(base=base, last=0))
        numbers = version_numbers.c
        query = select(numbers.last).where(numbers.base == base)
        while True:
            await connection.execute(update(version_numbers).where(numbers.base == base).values(last=numbers.last + 1))
            number = (await connection.execute(query)).scalar_one()
            name = f"{base}-bonbon-{number:04d}-{digest[:DIGEST_LENGTH]}"
            if await self._find(connection, name) is None:  # a base model may have that name
                return name

    async def _free_name(self, connection: Transaction, name: str) -> str:
        if await self._find(connection, name) is not None:
            raise UserError(f"there is a version {name!r} already: give another --name", param="name")
        return name

    async def _find(self, connection: Transaction, name: str) -> Version | None:
        row = (await connection.execute(select(versions).where(versions.c.name == name))).mappings().one_or_none()
        return None if row is None else self._version(row)

    async def _need(self, connection: Transaction, name: str) -> Version:
        version = await self._find(connection, name)
        if version is None:
            raise UnknownVersion(
                f"there is no version {name!r}; `bonbon models list` shows those there are", param="version"
            )
        return version

    def _alias_target(self, row: Any) -> Target:
        if row["name"] is None:
            return Target(row["target"], "")
        version = self._version(row)
        return Target(version.name, version.digest, version.k)

    def _row(self, version: Version) -> dict[str, Any]:
        fields = {name: getattr(version, name) for name in Version.__dataclass_fields__}
        nowhere = version.kind is VersionKind.BASE and not version.digest
        stored = str(version.directory) if nowhere else stored_path(version.directory, self.data_dir)
        return {**fields, "directory": stored}

    def _version(self, row: Any) -> Version:
        fields = {name: row[name] for name in Version.__dataclass_fields__}
        fields["kind"], fields["state"] = VersionKind(fields["kind"]), VersionState(fields["state"])
        fields["directory"] = files_directory(row["directory"], fields["kind"], row["digest"], self.root)
        return Version(**fields)


def _is_where(base: Version, directory: Path | None, digest: str) -> bool:
    """Returns whether the base's files are known to be there, or need not be."""
    return directory is None or (base.directory, base.digest) == (directory, digest)


def _located(directory: Path) -> tuple[Path, str]:
    return directory.absolute(), base_digest(directory)


async def _target(connection: Transaction, alias: str) -> str | None:
    return (await connection.execute(select(aliases.c.version).where(aliases.c.alias == alias))).scalar_one_or_none()


async def _point(connection: Transaction, alias: str, name: str) -> None:
    now = datetime.now(UTC)
    moved = await connection.execute(update(aliases).where(aliases.c.alias == alias).values(version=name, moved=now))
    if moved.rowcount == 0:
        await connection.execute(insert(aliases).values(alias=alias, version=name, moved=now))


async def _clear(connection: Transaction, alias: str, name: str | None = None) -> None:
    """Removes the alias (only if it refers to `name`, when that is given)."""
    statement = delete(aliases).where(aliases.c.alias == alias)
    await connection.execute(statement if name is None else statement.where(aliases.c.version == name))


async def _set(connection: Transaction, name: str, **values: Any) -> None:
    await connection.execute(update(versions).where(versions.c.name == name).values(**values))


async def _record(connection: Transaction, kind: str, version: str, actor: str, **detail: Any) -> None:
    now = datetime.now(UTC)
    row = {"id": time_ordered_id(), "time": now, "kind": kind, "version": version, "actor": actor, "detail": detail}
    await connection.execute(insert(events).values(row))


def _new(
    name: str, base: str, parent: str | None, kind: VersionKind, digest: str, directory: Path, state: VersionState
) -> Version:
    now = datetime.now(UTC)
    return Version(name, base, parent, kind, digest, directory, state, now, training={}, evaluation={}, verdict=None)
