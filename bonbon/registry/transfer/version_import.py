"""Registers a version that another installation exported, or that `bonbon distill` made."""

import asyncio
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError
from bonbon.files.manifest import base_digest, names_base, verify
from bonbon.files.model_files import LONGEST_NAME
from bonbon.registry.registry import Registry
from bonbon.registry.transfer.exported_version import BESIDE, EVALUATION, IMPORTED, RECORD, Record, read_object
from bonbon.registry.version_paths import refuse_missing
from bonbon.registry.version_records import Version
from bonbon.store.database import open_database

REGISTERED, DATABASE = "registered.json", "bonbon.db"
"""Files in the directory of `bonbon distill`: the name of the registered version, and its registry."""
ESTIMATES = ("win_rate", "win_rate_best_of_n", "win_rate_served", "kl", "recovered", "length_ratio", "gain")
SHARES = ("best_of_n_win_rate", "held_out_win_rate", "kl_k1", "truncated")
"""Figures that are either an estimate or a number."""
MAX_DRAWS = 1024
"""The most draws that an imported version may answer with, because a service draws that many for each request."""
INHERITED = ("held_out_fraction", "validation_fraction")
"""Settings that determine the held-out prompts. A later round must hold out the same ones."""


@dataclass(frozen=True, slots=True)
class Source:
    """A version of another installation. `directory` holds its files, and others with the names `beside`."""

    directory: Path
    beside: Collection[str]
    version: str
    kind: VersionKind
    digest: str
    base: str
    base_digest: str
    training: dict[str, Any]
    evaluation: dict[str, Any]
    verdict: dict[str, Any] | None


async def read_source(directory: Path) -> Source:
    """Reads the version in a directory that `bonbon models export` or `bonbon distill` has written.

    Raises UserError when the directory is neither, or the distillation has not finished.
    """
    if (directory / RECORD).exists():
        return await asyncio.to_thread(_exported, directory)
    if (directory / REGISTERED).exists() and (directory / DATABASE).exists():
        return await _distilled(directory)
    if (directory / "distill.json").exists():
        raise UserError(
            f"the distillation in {directory} has not finished: run the same `bonbon distill` again, then import it",
            param="directory",
        )
    raise UserError(
        f"{directory} has no {RECORD}: give a directory that `bonbon models export` or `bonbon distill --out` has "
        "written",
        param="directory",
    )


async def import_version(registry: Registry, source: Source, base: Version, *, name: str | None = None) -> Version:
    """Copies the files into the data directory and registers the version, which is never promoted automatically.

    Its training record, evaluation and verdict are kept and marked as imported, so that rounds of this installation do
    not count any of their groups as trained on.

    Args:
        base: The base model of this installation.
        name: Beginning of the version's name, before the start of its digest.

    Raises:
        UserError: The base differs, the files differ from the exported ones, or they are already registered.
    """
    if name is not None and (len(name) > LONGEST_NAME or re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) is None):
        raise UserError(
            f"--name is {name!r}: use at most {LONGEST_NAME} lower-case letters, digits, dots, dashes and underscores",
            param="name",
        )
    _refuse_other_kind(source)
    await asyncio.to_thread(_refuse_other_base, source, base)
    await asyncio.to_thread(verify, source.directory, source.digest, source.beside)
    for version in await registry.list():
        if (version.base, version.digest) == (base.name, source.digest):
            raise UserError(f"{source.directory} is already registered as {version.name}", param="directory")
    origin = {"version": source.version, "base": source.base, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    _refuse_unsound(source)
    inherited = {key: source.training[key] for key in INHERITED if key in source.training}
    return await registry.register(
        base=base.name,
        parent=base.name,
        kind=source.kind,
        directory=source.directory,
        training={**inherited, IMPORTED: origin | {"training": source.training}},
        evaluation={**source.evaluation, IMPORTED: origin} if source.evaluation else {},
        verdict=_verdict(source, origin),
        prefix=name,
        actor="import",
        leaving_out=source.beside,
    )


async def base_of(registry: Registry, source: Source) -> Version:
    """Returns this registry's base model with the digest of the source's. Raises UserError when there is none."""
    bases = [version for version in await registry.list() if version.kind is VersionKind.BASE]
    for base in bases:
        if source.base_digest and base.digest == source.base_digest:
            return base
    known = [base for base in bases if base.digest]
    if len(known) == 1:
        return known[0]  # an earlier release may have written the digest; otherwise the error names both
    names = ", ".join(base.name for base in bases) or "none"
    raise UserError(
        f"no base model that is registered here (there is: {names}) is known to be {source.base}, digest "
        f"{source.base_digest[:12] or 'unknown'}: name the directory of that model with --model",
        param="model",
    )


def _refuse_other_base(source: Source, base: Version) -> None:
    if not source.base_digest:
        raise UserError(
            f"{source.directory} does not say which files its base model {source.base} has: export it again where they "
            "are on the machine (set model there)",
            param="directory",
        )
    if not base.digest:
        raise UserError(
            f"the files of the base model {base.name} are not on this machine, so that it cannot be compared: name "
            "their directory with --model",
            param="model",
        )
    if source.base_digest == base.digest:
        return
    refuse_missing(base)
    # Computed again, because an earlier release may have written the registry's digest.
    if not names_base(source.base_digest, base.directory, base_digest(base.directory)):
        raise UserError(
            f"{source.version} was trained on {source.base}, digest {source.base_digest[:12]}, and the base model here "
            f"is {base.name}, digest {base.digest[:12]}, another model: import it where that base is served",
            param="directory",
        )


def _refuse_other_kind(source: Source) -> None:
    adapter = (source.directory / "adapter_config.json").exists()
    if source.kind is not (VersionKind.ADAPTER if adapter else VersionKind.FULL):
        held = "an adapter" if adapter else "whole weights"
        raise UserError(
            f"{source.directory} holds {held}, but its {RECORD} records kind = {source.kind}: export the version again",
            param="directory",
        )


def _refuse_unsound(source: Source) -> None:
    """Refuses figures that metrics, tables and the console could not read."""
    e, training, verdict = source.evaluation, source.training, source.verdict or {}
    best_of_k = e.get("best_of_k") or []
    sound = isinstance(best_of_k, list) and all(isinstance(one, dict) and _is_count(one.get("k")) for one in best_of_k)
    for values in (e, *best_of_k) if sound else ():
        sound = sound and all(map(_is_estimate, map(values.get, ESTIMATES)))
        sound = sound and all(_is_estimate(found) or _is_number(found) for found in map(values.get, SHARES))
    sound = sound and all(_is_count(e.get(name, 1)) for name in ("n", "served_k"))
    sound = sound and isinstance(training.get("settings", {}), dict) and isinstance(verdict.get("reasons", []), list)
    sound = sound and all(isinstance(reason, dict | str) for reason in verdict.get("reasons", []))
    fractions = (training.get(key, 0) for key in INHERITED)
    if not sound or not all(_is_number(share) and 0 <= share < 1 for share in fractions):
        raise UserError(
            f"the evaluation or the training record of {source.directory} contains figures that are not numbers: "
            "export the version again",
            param="directory",
        )


def _is_estimate(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(x is None or _is_number(x) for x in value.values()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_DRAWS


def _verdict(source: Source, origin: dict[str, str]) -> dict[str, Any] | None:
    """Returns the other gate's verdict without its approval; a forced promotion needs its `k`."""
    found = source.verdict
    if found is None:
        return None
    k, saved, passed = found.get("k"), found.get("saved"), found.get("passed") is True
    said = f"passed it to answer with best-of-{k}" if passed and k else "passed it" if passed else "refused it"
    reason = {
        "check": IMPORTED,
        "value": None,
        "threshold": 0.0,
        "passed": False,
        "text": f"imported: the gate of the installation that made it {said}; the gate of this one has not judged it",
    }
    return {
        "passed": False,
        "reasons": [reason],
        "k": k if _is_count(k) else None,
        "saved": saved if _is_number(saved) else None,
        IMPORTED: origin | {"verdict": found},
    }


def _exported(directory: Path) -> Source:
    record = Record.read(directory)
    return Source(
        directory=directory,
        beside=BESIDE,
        version=record.version,
        kind=record.kind,
        digest=record.digest,
        base=record.base,
        base_digest=record.base_digest,
        training=record.training,
        evaluation=read_object(directory / EVALUATION),
        verdict=record.verdict,
    )


def _database_url(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory.absolute() / DATABASE}"


async def _distilled(directory: Path) -> Source:
    name = str(read_object(directory / REGISTERED).get("version"))
    async with open_database(_database_url(directory), create=False) as database:
        registry = Registry(database, directory / "versions")
        version = await registry.get(name)
        base = await registry.get(version.base)
    return Source(
        directory=version.directory,
        beside=(),
        version=version.name,
        kind=version.kind,
        digest=version.digest,
        base=base.name,
        base_digest=base.digest,
        training=version.training,
        evaluation=version.evaluation,
        verdict=version.verdict,
    )
