"""Exports a version to a directory that other programs can load and other installations can import."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bonbon import __version__
from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError
from bonbon.extras import need
from bonbon.files.manifest import MANIFEST, make_manifest, version_files
from bonbon.progress import Bar
from bonbon.registry.registry import Registry
from bonbon.registry.transfer.exported_version import BESIDE, CARD, EVALUATION, IMPORTED, RECORD, Record
from bonbon.registry.transfer.model_card import model_card
from bonbon.registry.version_records import Version

CHUNK = 16 * 2**20
"""Number of bytes copied at a time."""


class Exported(NamedTuple):
    """The files that were written."""

    directory: Path
    record: Record
    files: int
    bytes: int


async def export_version(registry: Registry, name: str, directory: Path, *, merged: bool, bar: Bar) -> Exported:
    """Writes a version to a new directory: the model's files, their manifest, a model card, the evaluation and a
    record.

    The directory appears only once it is complete.

    Args:
        merged: Write whole weights, with the adapter merged into the base model, instead of the adapter.

    Raises:
        UnknownVersion: The version does not exist.
        UserError: The version is a base model, files are missing or changed, the directory exists, or the version
            cannot be merged.
    """
    _refuse_taken(directory)
    version = await registry.get(name)
    if version.kind is VersionKind.BASE:
        raise UserError(f"{name} is a base model, not a version of one: copy {version.directory} itself")
    if merged and version.kind is VersionKind.FULL:
        raise UserError(f"{name} already has whole weights: export it without --merged", param="merged")
    base = await registry.get(version.base)
    if merged:
        if not base.digest:
            raise UserError(
                f"the files of the base model {base.name} were never on this machine, and --merged needs them: set "
                "model (BONBON_MODEL) to their directory, or export the adapter itself",
                param="merged",
            )
        need("export --merged", "embedded", "torch", "transformers", "peft", param="merged")
        await registry.verify(base.name)
    await registry.verify(name)
    return await asyncio.to_thread(_write, version, base, directory, merged, bar)


def _refuse_taken(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} already exists: name another --out, or delete it first", param="out")


def _write(version: Version, base: Version, directory: Path, merged: bool, bar: Bar) -> Exported:
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory.parent} cannot be created ({error.strerror}): name another --out", param="out"
        ) from error
    with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temporary:
        work = Path(temporary) / "work"
        if merged:
            # Imports torch.
            from bonbon.engines.embedded.merge import merge_adapter

            merge_adapter(base.directory, version.directory, work, bar)
            for name in BESIDE:
                (work / name).unlink(missing_ok=True)
            for path in work.iterdir():
                path.chmod(0o644)  # safetensors writes files that only their owner can read
        else:
            _copy(version.directory, work, bar)
        manifest = make_manifest(work)
        record = _record(version, base, manifest.digest, merged)
        (work / MANIFEST).write_text(manifest.to_json())
        (work / RECORD).write_text(record.to_json())
        evaluation = {key: value for key, value in version.evaluation.items() if key != IMPORTED}
        (work / EVALUATION).write_text(json.dumps(evaluation, indent=2) + "\n")
        rank = None if record.kind is VersionKind.FULL else _rank(work)
        (work / CARD).write_text(model_card(record, evaluation, rank=rank))
        try:
            work.rename(directory)
        except OSError as error:  # another process has created it meanwhile
            raise UserError(f"{directory} cannot be written: {error.strerror}", param="out") from error
    size = sum(entry.size for entry in manifest.files)
    return Exported(directory, record, len(manifest.files), size)


def _copy(source: Path, target: Path, bar: Bar) -> None:
    paths = [path for path in version_files(source) if path.parent != source or path.name not in BESIDE]
    with bar("copying MiB", sum(path.stat().st_size for path in paths) >> 20) as done:
        copied = 0
        for path in paths:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as reading, copy.open("wb") as writing:
                while piece := reading.read(CHUNK):
                    writing.write(piece)
                    copied += len(piece)
                    done(copied >> 20)
            shutil.copymode(path, copy)


def _record(version: Version, base: Version, digest: str, merged: bool) -> Record:
    # An imported version is exported as it was imported.
    training = version.training.get(IMPORTED, {}).get("training", version.training)
    verdict = version.verdict
    if verdict is not None and IMPORTED in verdict:
        verdict = verdict[IMPORTED].get("verdict")
    return Record(
        version=version.name,
        kind=VersionKind.FULL if merged else version.kind,
        merged=merged,
        digest=digest,
        base=base.name,
        base_hub_name=_hub_name(base.directory),
        base_digest=base.digest,
        parent=version.parent,
        created=version.created.isoformat(),
        k=version.k,
        training=_public(training),
        verdict=verdict,
        bonbon=__version__,
    )


def _public(training: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training record without this installation's paths and tenant names."""
    settings = {name: value for name, value in (training.get("settings") or {}).items() if name != "tenants"}
    others = {name: value for name, value in training.items() if name not in ("run", "settings")}
    return others | ({"settings": settings} if settings else {})


def _hub_name(directory: Path) -> str | None:
    """Returns the hub name of a model in the hub's cache, with directories named
    `models--owner--name/snapshots/...`."""
    for folder in directory.parts:
        if folder.startswith("models--"):
            return folder.removeprefix("models--").replace("--", "/")
    return None


def _rank(adapter: Path) -> int:
    """Returns the highest rank of the adapter's modules."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    ranks: Mapping[str, int] = config.get("rank_pattern") or {}
    return max(int(rank) for rank in (config.get("r", 8), *ranks.values()))
