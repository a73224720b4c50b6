"""Version files in a content-addressed directory."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from bonbon.errors import UserError
from bonbon.registry.manifest import MANIFEST, Manifest, make_manifest, verify, version_files


def store(directory: Path, root: Path) -> tuple[Manifest, Path]:
    """Copy a version's files to `root/<digest>`, durable before it has that name; what is there already is checked.

    Raises:
        UserError: the directory cannot be a version (see `make_manifest`), or changed while it was copied.
    """
    manifest = make_manifest(directory)
    target = root / manifest.digest
    if target.exists():
        verify(target, manifest.digest)
        return manifest, target
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=".incoming-") as temporary:
        work = Path(temporary) / manifest.digest
        work.mkdir()
        for path in version_files(directory):
            copy = work / path.relative_to(directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            _sync(copy)
        (work / MANIFEST).write_text(manifest.to_json())
        _sync(work / MANIFEST)
        _sync(work)
        if make_manifest(work).digest != manifest.digest:
            raise UserError(f"{directory} changed while it was being copied; register it again")
        try:
            work.rename(target)
        except OSError:
            verify(target, manifest.digest)  # somebody else stored the same content first
        _sync(root)
    return manifest, target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
